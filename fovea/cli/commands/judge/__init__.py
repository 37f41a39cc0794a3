"""`fovea judge …`: labels passages for queries, and measures how far the labels can be trusted."""

from __future__ import annotations

from fovea.cli.commands.judge import answers, collection, labelling, metrics, systems, trust
from fovea.cli.option_groups import CommandApp

app = CommandApp(
    help="Grade passages for queries, and measure how far the grades can be trusted.", no_args_is_help=True
)
app.command()(metrics.agreement)
app.command()(metrics.rankings)
app.command()(metrics.ensemble)
app.command()(metrics.leaderboard)
app.command()(trust.trust)
app.command()(trust.weights)
app.command()(systems.significance)
app.command("corrected")(systems.correct_scores)
app.command()(systems.budget)
app.command()(trust.preferences)
app.command("import")(collection.import_collection)
app.command()(answers.nuggets)
app.command()(answers.support)
app.command()(labelling.pair)
app.command()(labelling.batch)
app.command()(labelling.templates)
app.command()(labelling.calibrate)
