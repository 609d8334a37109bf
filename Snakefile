# The study as a graph: one rule a notebook, and one more for each of its slices. `make reproduce` runs it.
# What has been computed lies in the store, so that running a notebook again costs seconds and loses nothing. It works in
# the profile's folder of results, where Snakemake also keeps what it knows about them: copied or removed, they go together.
# Where the jobs run is told by a profile of Snakemake's, see workflow/README.md.
import re
import shlex
import sys

from emlib.workflow import chosen, jobs

JOBS = jobs(config.get("profile", "demo"))


rule all:
    default_target: True
    input:
        chosen(JOBS, config["only"]) if config.get("only") else "report/index.html",


rule report:
    input:
        [job.output for job in JOBS],
    output:
        "report/index.html",
    shell:
        f"{shlex.quote(sys.executable)} -m emlib.report.book {shlex.quote(config.get('profile', 'demo'))}"


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
            arguments=f"{job.chapter} {job.arguments} --out {shlex.quote(job.output)} --log {shlex.quote(job.log)} "
            f"--digest {job.digest} {'--gpu' if job.trains else ''} "
            f"--label {shlex.quote(f'{number}/{len(JOBS)}  {job.name}')}",
        priority: -number  # in reading order
        resources:
            **job.resources,
        shell:
            f"{shlex.quote(sys.executable)} -m emlib.notebooks {{params.arguments}}"
