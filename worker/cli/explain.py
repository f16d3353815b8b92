"""The command that tells the story of a job."""

import click

from models.errors import Refused
from models.messages.answer import refused_answer
from models.messages.base import Json
from models.reports.story import show_story_to_operator
from worker.cli import tables
from worker.cli.output import ask, print_answer, show, table_options
from worker.cli.session import Need, current_session, needs


@click.command()
@click.argument("job")
@click.option("--as", "viewer", help="What this user may see of it. Default: everything, for operators.")
@click.option("--organization", help="Whose job, if several organizations use the same id.")
@table_options
@needs(Need.DATABASE)
def explain(*, job: str, viewer: str | None, organization: str | None, as_json: bool) -> None:
    """Tell the story of JOB: who asked, whose credits paid and why, each attempt, and how it ended.

    JOB is the id of a send job, or of one message of a bulk job, such as campaign-7/12. Lines without a time are how it
    stands now. What carriers said is shown without addresses and numbers.

    \b
    postage explain invoice-4711
    postage explain campaign-7/12 --as mary
    """  # noqa: D301  \b is click's, not ours
    if viewer is not None and organization is not None:
        msg = "A viewer sees jobs of their own organization: leave --organization out."
        raise click.UsageError(msg)
    answer = _story(job, viewer, organization)
    if answer.get("story"):  # also of a job that was refused: that is what was asked
        show(answer, as_json=as_json, table=tables.story)
    else:
        print_answer(answer, as_json=as_json, table=tables.story)


def _story(job: str, viewer: str | None, organization: str | None) -> Json:
    if viewer is not None:
        return ask("views.explain", {"viewer": viewer, "job_id": job})
    database = current_session().context.database
    try:
        return database.read(lambda connection: show_story_to_operator(connection, job, organization))
    except Refused as why:
        return {"job_id": job, **refused_answer(why.reason, why.detail)}
