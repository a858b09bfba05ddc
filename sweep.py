"""A grid of settings × seeds, run one after another, and the table of it at the end.

    python sweep.py run_5_models.py --config configs/preference/demo.yaml \\
        --grid lr=1e-5,2e-5 freeze=none,all --seeds 3
    python sweep.py --config configs/sweeps/frozen.yaml                 # a whole published table
    python sweep.py --config configs/sweeps/models.yaml --processes 4   # each run under torchrun
    python sweep.py run_5_models.py --config configs/preference/demo.yaml --aa     # the controls
    python sweep.py --config configs/sweeps/frozen.yaml --dry_run       # the commands, and stop
    python sweep.py --config configs/sweeps/models.yaml --dry_run --gpu A100   # and what they cost
    python sweep.py explain results/run_1 results/run_2 --seeds 3       # which setting did it?
    python sweep.py run_5_models.py --config configs/preference/demo.yaml --noise   # which seed did
    python sweep.py --config configs/sweeps/models.yaml --race --margin 0.01 --max_seeds 12
    python sweep.py status results/sweeps/frozen          # who does what, and how much is left
    python sweep.py push HOST:FOLDER --config configs/sweeps/frozen.yaml    # and pull, home again

The same command again skips what is finished and continues what was cut off. Ctrl-C and SIGTERM
let the runs save first. A failed run is listed at the end, and the others are run all the same.
A run that diverged is no failure but an outcome: it counts in the table and the comparison.
--aa runs the same settings with two sets of seeds (first, second: any difference is noise) and
with shuffled labels, which must stay at chance.
--race adds one seed at a time to the arms that are still undecided against the first one, up to
--max_seeds (10), and drops what is better, worse or, with --margin, the same: the looks are planned
for (docs/statistics.md), and --hours H, of all runs together, ends it sooner.
Any number of processes, on one machine or on many with one volume, may run the same command with
one --out: they share the runs, and take over what has fallen silent (docs/many_machines.md).

A sweep file is a settings file with these keys besides; all other keys are common to all runs:
    script: run_5_models.py
    processes: 2                        # of each run; more than one: torchrun
    seeds: 3                            # 0, 1, 2; or a list
    grid: {lr: [1e-5, 2e-5]}            # every combination, in every arm
    arms:                               # the first one is the baseline
      frozen: {freeze: all, head_lr: 1e-3}
      roberta: {config: configs/preference/roberta.yaml}    # script, seeds: of its own, too
    tune: {lr: [1e-5, 1e-4]}            # each arm tries all of these once, with tune_seed (1000),
                                        # and runs its seeds with the lowest validation loss (of
                                        # the end, with test_with: final); an arm may have as many
                                        # values of its own
    tune_by: val_accuracy               # the best of this figure instead
    paired: true                        # the comparison pairs runs of one seed (docs/statistics.md)
    margin: 0.01                        # a difference of the primary metric that does not matter
    explain: …                          # of `sweep.py explain A B`: docs/explain.md
    race: {max_seeds: 10}               # as --race

OUT/sweep.yaml   the whole plan, itself a sweep file      OUT/tuned.yaml   what tuning chose
OUT/<arm>/seed_<n>/  seed_<n>.log                         OUT/<arm>/tune/<value>/  <value>.log
OUT/attempts/<k>/<arm>/seed_<n>/  one that has not ended, or failed; OUT/claims/…: whose; its log
OUT/looks.jsonl  with how many seeds results were looked at, and what a race decided
"""

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

import console
import files
from evaluation.metrics import with_interval
from files import PROJECT, read_json
from sweeps import cost, explain
from sweeps.ended import has_diverged, is_finished
from sweeps.limits import Limits
from sweeps.notices import Notices
from sweeps.plan import Plan, Run, check_settings, find, parse_arguments, parse_words, refuse
from sweeps.running import Runner
from sweeps.tuning import tune

REPORT = PROJECT / "report.py"
LOOKS = "looks.jsonl"


def report(*words: str) -> None:
    """report.py in a process of its own; the runs stand without it, so its failure is a warning."""
    sys.stdout.flush()
    if subprocess.run([sys.executable, str(REPORT), *words]).returncode:
        console.say(f"warning: no report; again with: python report.py {shlex.join(words)}")


def note_look(out: Path, seeds: dict[str, list[int]]) -> None:
    """That the results of these seeds of each arm were shown; the same ones again are no look."""
    with files.appending(out / LOOKS) as (looks, add):
        if all(look.get("seeds") != seeds for look in looks):
            add({"seeds": seeds})


def judge_shuffled(runs: Sequence[Run]) -> bool:
    """Say of each run with shuffled labels whether it stayed at chance; True: all did that have a
    figure, and some has one.

    Above chance: even the lower end of the 95 % interval beats the best constant answer. One honest
    run in 40 would be so by luck; more seeds tell.
    """
    at_chance = judged = 0
    for run in runs:
        metrics = read_json(run.folder / "test/metrics/metrics.json")
        if has_diverged(read_json(run.folder / "run.json")):
            console.say(f"{run.name}: diverged, and so has no accuracy to judge by")
            continue
        if not {"accuracy_ci95", "constant_accuracy"} <= metrics.keys():
            console.say(f"{run.name}: no accuracy to judge by")
            continue
        low, high = metrics["accuracy_ci95"]
        above = low > metrics["constant_accuracy"]
        at_chance += not above
        judged += 1
        console.say(
            f"{run.name}: accuracy {with_interval(metrics['accuracy'], low, high)}, a constant "
            f"answer {metrics['constant_accuracy']:.4f}: "
            + ("ABOVE CHANCE: something leaks" if above else "at chance")
        )
    if not judged:
        console.say("verdict: none of the runs with shuffled labels has a figure to judge by")
        return False
    passed = at_chance == judged
    verdict = "as it must be" if passed else "NOT as it must be"
    if judged < len(runs):
        verdict += f"; {len(runs) - judged} more cannot be judged"
    console.say(f"verdict: {at_chance} of {judged} runs with shuffled labels at chance, {verdict}")
    return passed


def print_commands(plan: Plan) -> None:
    runs = [run for arm in plan.arms for run in plan.trials(arm).values()]
    for arm in plan.arms:
        runs += plan.runs(arm, {name: "TUNED" for name in arm.tune})
    for run in runs:
        done = "   # finished" if is_finished(run) else ""
        console.answer(shlex.join(["python", *plan.command(run)[1:]]) + done)
    console.answer(str(plan))


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 when a run failed or leaks, 128 + signal when stopped."""
    if argv[:1] == ["explain"]:
        return explain.main(argv[1:], main)
    if argv[:1] in (["push"], ["pull"]):
        from sweeps import transfer

        return transfer.main(argv)
    if argv[:1] == ["status"]:
        from sweeps.status import status

        return status(argv[1:])
    args = parse_arguments(argv, __doc__)
    plan = Plan(args)
    resolved = check_settings(plan)
    if args.dry_run:
        print_commands(plan)
        if args.gpu:
            arms = [(arm, len(arm.seeds) + len(plan.trials(arm))) for arm in plan.arms]
            runs = [(a.label, a.script, resolved.get(a.label, {}), n) for a, n in arms]
            for line in cost.table(runs, args.gpu):
                console.answer(line)
        return 0
    files.require_writable(plan.out, folder=True)
    console.say(str(plan))
    plan.out.mkdir(parents=True, exist_ok=True)
    written = plan.out / "sweep.yaml"
    if not (args.config and written.exists() and written.samefile(find(args.config, "config"))):
        text = yaml.safe_dump(plan.as_sweep_file(), sort_keys=False)
        files.write_text(written, text, shared=True)
    if args.on:
        return hand_over(plan, args)
    if args.stale is not None:  # the scripts beat as often as this asks
        os.environ["ABLATE_STALE_SECONDS"] = str(args.stale)
    notices = Notices(args.notify, plan.out.name)
    # of a race, the runs' hours count: sweeps/race.py
    limits = Limits(args.jobs, None if plan.race else args.hours, args.price, args.max_cost)
    verdicts: list[str] = []  # of a race
    with Runner(plan, limits, notices) as runner:
        chosen = tune(plan, runner)
        runs = {a.label: plan.runs(a, chosen[a.label]) for a in plan.arms if a.label in chosen}
        if not runner.stopping and plan.race:
            from sweeps import race

            try:
                runs, verdicts = race.race(plan, runner, runs, is_finished)
            except ValueError as error:
                raise refuse(f"the race cannot be judged: {error}") from None
        elif not runner.stopping:
            every = [run for arm_runs in runs.values() for run in arm_runs]
            runner.run(every, leave=args.leave)
    code = finish(plan, args, runner, runs, verdicts)
    every = [run for arm in runs.values() for run in arm]
    finished = sum(map(runner.has_ended, every))
    text = f"ended with exit code {code}, {finished} of {len(every)} runs are finished"
    notices.post("ended", text, code=code, finished=finished, runs=len(every),
                 failed=len(runner.failed))  # fmt: skip
    return code


def hand_over(plan: Plan, args: argparse.Namespace) -> int:
    """Have an engine run the plan: each of its jobs is this command again, without --on, and they
    share the runs."""
    options = parse_words(f"--{args.on}", getattr(args, args.on))
    todo = sum(not is_finished(run) for run in plan.every_run())
    try:
        jobs = int(options.pop("array", -(-todo // plan.jobs)))
        if not todo or jobs < 1:
            raise ValueError("all runs are finished" if not todo else f"array={jobs}: how many?")
        words = ["--config", plan.out / "sweep.yaml", "--out", plan.out, "--jobs", plan.jobs]
        for name in ("hours", "price", "max_cost", "stale"):
            if (value := getattr(args, name)) is not None:
                words += [f"--{name}", value]
        if args.notify:  # in the environment, which is not written down
            os.environ["ABLATE_NOTIFY"] = args.notify
        command = [sys.executable, str(PROJECT / "sweep.py"), *map(str, words), "--leave"]
        engine = importlib.import_module(f"sweeps.on_{args.on}")
        ids = engine.submit([command] * jobs, plan.out / "jobs", options)
    except ValueError as error:
        raise refuse(str(error)) from None
    console.say(f"{len(ids)} jobs share {todo} runs: {', '.join(ids)}; logs: {plan.out}/jobs")
    console.say(f"who does what: python sweep.py status {plan.out}; this command without --on has")
    console.say("the table at the end")
    return 0


def finish(
    plan: Plan,
    args: argparse.Namespace,
    runner: Runner,
    runs: Mapping[str, Sequence[Run]],
    verdicts: Sequence[str],
) -> int:
    """Say what came of it: the table, the comparison, what failed. Returns the exit code."""
    if runner.signals:
        console.say("stopped; the same command continues")
        return 128 + runner.signals[0]
    if runner.gave_up:
        console.say("the first run failed before its first step, so the others were not begun:")
        console.say(f"  {runner.first.name}: {runner.failed[runner.first.name]}")
        return 1
    # what failed elsewhere may have been tried again since
    whole = {label: list(filter(runner.has_ended, those)) for label, those in runs.items()}
    for run in (run for those in whole.values() for run in those):
        runner.failed.pop(run.name, None)
    every = [run for arm in runs.values() for run in arm]
    done = [label for label in runs if whole[label]]
    if done:
        report("table", str(plan.out))
    compared = [label for label in done if not args.aa or label in ("first", "second")]
    if plan.explain and done:
        report("effects", str(plan.out))
    elif plan.noise:
        if all(map(runner.has_ended, every)):
            report("noise", str(plan.out))
    elif len(compared) > 1 and compared[0] == plan.arms[0].label:  # the baseline
        paths = [plan.out / label for label in compared]
        if sum(map(len, whole.values())) < len(every):  # a failed run's place may hold another
            paths = [run.folder for label in compared for run in whole[label]]
        if not plan.race and not args.aa:
            note_look(plan.out, {a: [run.settings["seed"] for run in whole[a]] for a in compared})
        report("compare", *map(str, paths))
    for line in verdicts:
        console.say(line)
    if args.aa:
        console.say("first and second differ in their seeds alone: what they differ by is noise")
    if diverged := [r.name for r in every if has_diverged(read_json(r.folder / "run.json"))]:
        console.say(f"diverged: {len(diverged)} of {len(every)} runs: {', '.join(diverged)}")
    shuffled = (whole if runner.limited or runner.left else runs).get("shuffled")
    leaks = args.aa and "shuffled" in done and not judge_shuffled(shuffled)
    if runner.left:
        console.say(f"{runner.left} runs are left to others, and no other is free")
    if runner.limited:
        left = len(every) - sum(map(len, whole.values()))
        which = f"{left} runs are left" if runs else "tuning is not at its end"
        console.say(f"no further run was started, {which}: {runner.limited}")
    if runner.failed:
        console.say(f"failed: {len(runner.failed)}; the same command tries again")
        for name, reason in runner.failed.items():
            console.say(f"  {name}: {reason}")
    return 1 if runner.failed or leaks else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the runs or after them
        sys.exit(130)
    except OSError as error:
        raise refuse(str(error)) from None
