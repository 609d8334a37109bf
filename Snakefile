# The study as a graph: one rule for each notebook, and one for each of its slices. `make reproduce` runs it.
# Computed artefacts are in the store, so that running a notebook again takes seconds and loses nothing. Snakemake works
# in the profile's folder of results and keeps its records there, so that both are copied or removed together.
# A Snakemake profile defines where the jobs run, see workflow/README.md.
import re
import shlex
import sys

from emlib.core import paths
from emlib.workflow.graph import chosen, jobs

PROFILE = config.get("profile", "demo")
JOBS = jobs(PROFILE)


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
        [job.output for job in chosen(JOBS, str(config["only"]))] if config.get("only") else
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


for number, job in enumerate(JOBS, start=1):

    rule:
        name:
            "notebook_" + re.sub(r"\W+", "_", job.name).strip("_")
        input:
            job.needs,
        output:
            job.output,
        params:
            content=job.digest,  # only changed content makes the notebook stale
            command=command(number, job),
        priority: -number  # reading order
        resources:
            **job.resources,
        shell:
            "{params.command}"
