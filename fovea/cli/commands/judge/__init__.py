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
for measure in (metrics.agreement, metrics.ensemble, trust.trust, trust.weights):
    app.command()(measure)
for label in (labelling.pair, labelling.batch, labelling.templates, labelling.calibrate):
    app.command()(label)
