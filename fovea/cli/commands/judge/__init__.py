"""`fovea judge …`: labels passages for queries, and measures how far the labels can be trusted."""

from fovea.cli.commands.judge import labelling, metrics, trust
from fovea.cli.option_groups import CommandApp
from fovea.cli.plugins import PluginGroup


class JudgeGroup(PluginGroup):
    """Its own commands, and those of plug-ins about systems and answers."""

    parent = "judge"


app = CommandApp(
    cls=JudgeGroup,
    help="Grade passages for queries, and measure how far the grades can be trusted.",
    no_args_is_help=True,
)
app.command()(metrics.agreement)
app.command()(metrics.ensemble)
app.command()(trust.trust)
app.command()(trust.weights)
app.command()(labelling.pair)
app.command()(labelling.batch)
app.command()(labelling.templates)
app.command()(labelling.calibrate)
