# The study as a graph: one rule a notebook, and one more for each of its slices. `make reproduce` runs it.
# What has been computed lies in the store, so that running a notebook again costs seconds and loses nothing. It works in
# the profile's folder of results, where Snakemake also keeps what it knows about them: copied or removed, they go together.
# Where the jobs run is told by a profile of Snakemake's, see workflow/README.md.
import re
import shlex
import sys

from emlib.core import paths
from emlib.workflow.graph import chosen, jobs

PROFILE = config.get("profile", "demo")
JOBS = jobs(PROFILE)


def command(number, job):
    """How the job is run. What takes the output's place is no content to Snakemake: a folder may be moved."""

    def words(wildcards, output):
        log = paths.runs() / paths.study_name(PROFILE) / job.log  # where `make status` looks, whatever runs the job
        given = [*shlex.split(job.arguments), "--digest", job.digest, *(["--gpus", str(job.limits.gpus)] if job.trains else [])]
        return shlex.join([sys.executable, "-m", "emlib.workflow.notebooks", job.chapter, *given, "--out", str(output),
                           "--log", str(log), "--label", f"{number}/{len(JOBS)}  {job.name}"])

    return words


rule all:
    default_target: True
    input:
        [job.output for job in chosen(JOBS, str(config["only"]))] if config.get("only") else "report/index.html",


rule report:
    input:
        [job.output for job in JOBS],
    output:
        "report/index.html",
    localrule: True
    params:
        made=lambda wildcards, output: paths.runs() / paths.study_name(PROFILE) / "report" / "index.html",
    shell:  # an executor with a storage has a place of its own for the output
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
        log:
            job.error,  # how the last attempt failed, for Snakemake to show; the whole log is beside it
        params:
            content=job.digest,  # a changed content, and nothing else, makes the notebook stale
            command=command(number, job),
        priority: -number  # in reading order
        resources:
            **job.resources,
        shell:
            "{params.command}"
