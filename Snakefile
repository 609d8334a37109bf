# The study as a graph: one rule for each notebook, and one for each of its slices. `make reproduce` runs it.
# Computed artefacts are in the store, so that running a notebook again takes seconds and loses nothing. Snakemake works
# in the profile's folder of results and keeps its records there, so that both are copied or removed together.
# A Snakemake profile defines where the jobs run, see workflow/README.md.
import os
import shlex
import sys

from emlib.core import machine, paths
from emlib.workflow.graph import chosen, jobs, rule_names

# From the environment, as make sets them: Snakemake reads what --config gives as YAML, a path with " #" as its start.
PROFILE = os.environ.get("EMLIB_PROFILE")
if not PROFILE or config.keys() & {"profile", "only"}:  # no default: another profile's results have the same names
    raise WorkflowError("Set EMLIB_PROFILE to the profile's name or absolute path, as `make reproduce` does, and EMLIB_ONLY to "
                        "the notebooks that you want, if not all. Both are not read from --config.")
ONLY = os.environ.get("EMLIB_ONLY", "")
JOBS = jobs(PROFILE)
# Snakemake gives the command of a rule one thread, whatever the machine has, because no rule asks for more.
THREADS = shlex.join(["env", *(f"{name}={number}" for name, number in machine.threads().items())])


# For executors whose jobs do not have this environment. A key is not among them: some write these values into files.
envvars:
    *(name for name in ("EMLIB_PROFILE", *paths.VARIABLES, "EMLIB_VLLM", "PLUGINS", "HF_HOME", "HF_ENDPOINT")
      if name in os.environ),


def command(number, job):
    """Returns a function that builds the job's command line. Snakemake does not compare the output's path in it, so
    that a folder of results may be moved."""

    def command_line(wildcards, output):
        log = paths.runs() / paths.study_name(PROFILE) / job.log  # `make status` reads it here for every executor
        given = [*shlex.split(job.arguments), "--digest", job.digest, *(["--gpus", str(job.limits.gpus)] if job.trains else [])]
        return shlex.join([sys.executable, "-m", "emlib.workflow.notebooks", job.chapter, *given, "--out", str(output),
                           "--log", str(log), "--label", f"{number}/{len(JOBS)}  {job.name}"])

    return command_line


rule all:
    default_target: True
    input:
        [job.output for job in chosen(JOBS, ONLY)] if ONLY else
        ["report/index.html", *(job.output for job in JOBS if not job.part)],  # chapters that were deleted come back


rule report:
    input:
        [job.output for job in JOBS],
    output:
        "report/index.html",
    localrule: True
    params:
        made=lambda wildcards, output: paths.runs() / paths.study_name(PROFILE) / "report" / "index.html",
    shell:  # an executor with a storage expects the output at another path
        shlex.join([sys.executable, "-m", "emlib.report.book", PROFILE])
        + "; test -e {output:q} || cp {params.made:q} {output:q}"


for number, (called, job) in enumerate(zip(rule_names(JOBS), JOBS), start=1):

    rule:
        name:
            called
        input:
            job.needs,
        output:
            job.output,
        params:
            content=job.digest,  # only changed content makes the notebook stale
            command=command(number, job),
        priority: -number  # reading order
        threads: config.get("threads", 1)  # the cores of a pod on Kubernetes; on one machine make shares them out
        resources:
            **job.resources,
        shell:
            THREADS + " {params.command}"
