"""`curate submit RECIPE`: the main job as a Ray job, with its log here and its own exit code at the end.

    export RAY_AUTH_MODE=token
    curate submit deploy/recipes/embedded.toml --set input.uri=s3://... --set store.uri=s3://...

`ray job submit` does the same but ends with 1 for every failure and with 0 for a job that was stopped. Ctrl-C leaves
the job to itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from curate.errors import DONE, FAILED, CurateError, UsageError
from curate.recipe import Recipe

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LOOK_EVERY_S = 1.0


def check(recipe: Recipe) -> None:
    """Raise UsageError for places that a job on other machines cannot mean."""
    for key, uri in (("input.uri", recipe.input.uri), ("store.uri", recipe.store.uri)):
        if "://" not in uri and not uri.startswith("/"):
            raise UsageError(
                f"{key} = {uri!r}: a job runs elsewhere; name an absolute path or URI that all nodes share"
            )


def submit(recipe: str, sets: Sequence[str], address: str, name: str, *, wait: bool) -> int:
    """Submit the job, print its log until it ends, and return its exit code; DONE at once without `wait`.

    The working folder travels: code and recipe, no data. Raises CurateError when no cluster takes the job.
    """
    client = _client(address)
    entry = ["python", "-m", "curate.pipeline", recipe, *(part for one in sets for part in ("--set", one))]
    # No `RAY_AUTH_*`, no keys: those of the nodes are used.
    try:
        job = client.submit_job(
            entrypoint=shlex.join(entry), submission_id=name or None, runtime_env={"working_dir": "."}
        )
    except (RuntimeError, ValueError, OSError) as why:
        raise CurateError(f"Ray does not take the job: {_line(why)}") from None
    typer.echo(f"job {job}; its log: ray job logs {job}; stop it: ray job stop {job}", err=True)
    if not wait:
        return DONE
    asyncio.run(_follow(client, job))
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(LOOK_EVERY_S)
    code = info.driver_exit_code
    if info.status == "SUCCEEDED":
        return DONE
    if info.status == "STOPPED":
        typer.echo("the job was stopped; nothing is lost: submit it again to go on", err=True)
        return FAILED
    if code is None or not 0 < code < 4:  # killed, or it never began
        typer.echo(f"the job failed: {_line(info.message)}", err=True)
        return FAILED
    return int(code)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    try:
        async for lines in client.tail_job_logs(job):
            typer.echo(lines, nl=False)
    except RuntimeError as why:  # the head went away for a moment, perhaps: the state is asked for next
        typer.echo(f"the log breaks off: {_line(why)}", err=True)


def _client(address: str) -> JobSubmissionClient:
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address or os.environ.get("RAY_API_SERVER_ADDRESS"))
    except (ImportError, RuntimeError, ConnectionError, ValueError) as why:
        if "ray[default]" in str(why) or isinstance(why, ImportError):
            raise CurateError("jobs need Ray's dashboard: pip install 'curate[cluster]'") from None
        raise CurateError(
            f"no Ray cluster takes jobs at {address or 'RAY_API_SERVER_ADDRESS'}: {_line(why)}; "
            "is it up, and is RAY_AUTH_MODE=token set here with the same token?"
        ) from None


def _line(why: object) -> str:
    return (str(why).strip().splitlines() or [type(why).__name__])[0].rstrip(".")[:300]
