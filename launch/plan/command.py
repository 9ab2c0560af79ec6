"""`isthmus plan`: from compute, sites, links and data to a run; predict, fit and calibrate."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from isthmus.config import compose, keys_of, to_yaml
from isthmus.errors import EXIT_OK, UserError
from isthmus.files import write_atomically, write_json
from isthmus.launch.plan import tables
from isthmus.launch.plan.calibrate import calibrate
from isthmus.launch.plan.fitting import fit_points
from isthmus.train.command import Command, parse, print_help
from isthmus.train.planner.config import PLAN_READS, PREDICT_READS, PlanRunConfig
from isthmus.train.planner.overlay import overlay
from isthmus.train.planner.plan import Plan, make_plan, prediction_summary, summary
from isthmus.train.planner.predict import predict
from isthmus.train.planner.question import Question, target
from isthmus.train.planner.resolve import (
    check_question,
    cluster_of,
    law_of_name,
    layout_of,
    shape_of_config,
    sync_of,
    unique_tokens_of,
)

_USAGE = """\
isthmus plan [OPTION] [KEY=VALUE] ...             the best run for a budget, a time, a size or a loss
isthmus plan predict [OPTION] [KEY=VALUE] ...     seconds, memory and utilisation of a fixed layout
isthmus plan fit POINTS.csv [--out FILE]          a scaling law of your own runs (plan.law=FILE)
isthmus plan calibrate [--out FILE]               the speeds of this machine (cluster.sites.NAME.profile=FILE)

    isthmus plan plan.flops=1e24 cluster=h100 cluster.sites.main.count=1024
    isthmus plan plan.days=30 cluster=my/sites.yaml
    isthmus plan predict model=70b parallel.tensor=8 parallel.sequence=true cluster=h100 train.global_batch=128

Options:
  --json           print one JSON object on standard output, everything else on standard error
  --print-config   print the composed configuration and end
  --help           print this

Groups (a choice may be a YAML file of yours, as in cluster=my/sites.yaml):
"""


def main(argv: Sequence[str]) -> int:
    """Run a sub-verb and return its exit code."""
    words = list(argv)
    verbs: dict[str, Callable[[list[str]], int]] = {"predict": _predict, "fit": fit_points, "calibrate": calibrate}
    try:
        if words and words[0] in verbs:
            return verbs[words[0]](words[1:])
        if words and "=" not in words[0] and not words[0].startswith("-"):
            raise UserError(
                f"there is no '{words[0]}'", where="isthmus plan", fix=f"use KEY=VALUE, or one of: {', '.join(verbs)}"
            )
        return _plan(words)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code


def _compose(words: list[str], reads: tuple[str, ...], instead: str) -> tuple[Command, PlanRunConfig | None]:
    """Return the command, and the configuration unless help or the configuration itself was asked for."""
    command = parse(words)
    if command.help:
        print_help(_USAGE, PlanRunConfig, "plan")
        return command, None
    if command.config:
        raise UserError("is of `isthmus train`", where="--config", fix="give overrides")
    for override in command.overrides:
        name = override.lstrip("+~").partition("=")[0]
        if not any(name == read or name.startswith(f"{read}.") for read in reads):
            # A misspelt key gets composition's own message.
            known = {key for key, _, _ in keys_of(PlanRunConfig)} | {"model", "sync", "optim", "schedule", "data"}
            if name in known:
                raise UserError("would do nothing here", where=override, fix=instead)
    config = compose(PlanRunConfig, "plan", command.overrides)
    if command.print_config:
        print(to_yaml(config), end="")
        return command, None
    return command, config


def question_of(config: PlanRunConfig, *, cpu: bool) -> Question:
    """Return the configured question, with the defaults that suit GPUs or CPUs.

    Raises:
        UserError: a number or a combination that makes no sense.
    """
    check_question(config)
    plan = config.plan
    return Question(
        law=law_of_name(plan.law),
        flops=plan.flops,
        days=plan.days,
        params=plan.params,
        loss=plan.loss,
        tokens_per_parameter=plan.tokens_per_parameter,
        unique_tokens=unique_tokens_of(plan.unique_tokens),
        max_epochs=plan.max_epochs,
        inference_tokens=plan.inference_tokens,
        max_params=plan.max_params,
        max_tokens=plan.max_tokens,
        max_days=plan.max_days,
        max_cost=plan.max_cost,
        prefer_cost=plan.prefer.name == "cost",
        sync_penalty=plan.sync_penalty,
        vocabulary=plan.vocab_size or (1024 if cpu else 128_256),
        sequence_length=plan.sequence_length or (128 if cpu else 4096),
        precision=plan.precision or ("fp32" if cpu else "bf16"),
        global_batch=plan.global_batch,
        bytes_per_token=plan.bytes_per_token,
        restart_seconds=60 * plan.restart_minutes,
        repair_hours=plan.repair_hours,
        power_overhead=plan.power_overhead,
    )


def _plan(words: list[str]) -> int:
    command, config = _compose(words, PLAN_READS, "the plan chooses it: limit it with plan.*, or use plan predict")
    if config is None:
        return EXIT_OK
    cluster = cluster_of(config.cluster)
    question = question_of(config, cpu=all(site.accelerator.kind == "cpu" for site in cluster.sites))
    if any(site.count is None for site in config.cluster.sites.values()):
        if question.days is not None:
            raise UserError(
                "is not given",
                where="cluster.sites.NAME.count",
                fix="plan.days needs it: cluster.sites.main.count=1024",
            )
        cluster = cluster_of(config.cluster, target(question, question.limited, question.flops).training_flops)
    plan = make_plan(question, cluster)
    folder = Path(config.plan.out).expanduser()
    console = Console(stderr=command.json, soft_wrap=True)
    tables.print_plan(console, plan)
    written = _write(plan, config, folder, console)
    console.print(f"train it with: isthmus train experiment={written}", highlight=False)
    if command.json:
        print(json.dumps({**summary(plan), "experiment": str(written)}))
    return EXIT_OK


def _write(plan: Plan, config: PlanRunConfig, folder: Path, console: Console) -> Path:
    path = folder / "plan.yaml"
    try:
        write_atomically(path, overlay(plan, config.data).encode())
        write_json(folder / "plan.json", summary(plan))
        try:
            from isthmus.launch.plan.report import report_html
        except ImportError:
            console.print("no report.html: it needs plotly, pip install 'isthmus[plan]'", highlight=False)
        else:
            write_atomically(folder / "report.html", report_html(plan).encode())
            console.print(f"everything is in {folder}: plan.yaml, plan.json, report.html", highlight=False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written: {reason}", where="plan.out", fix="choose another") from None
    return path


def _predict(words: list[str]) -> int:
    command, config = _compose(words, PREDICT_READS, "it changes no prediction: leave it out")
    if config is None:
        return EXIT_OK
    cluster = cluster_of(config.cluster)
    layout, sync, shape = layout_of(config, cluster), sync_of(config.sync), shape_of_config(config)
    prediction = predict(shape, layout, cluster, sync)
    tables.print_prediction(Console(stderr=command.json, soft_wrap=True), shape, layout, sync, prediction)
    if command.json:
        print(json.dumps({"params": shape.params, "ranks_per_site": layout.ranks, **prediction_summary(prediction)}))
    return EXIT_OK
