"""Prints docs/configuration.md from the configuration classes: types, ranges and defaults are read, never retyped.

    python docs/generate_configuration.py > docs/configuration.md

What a field means comes from its own description, else from its line under "Attributes:" in the class's docstring,
else from MEANINGS below. A field without a meaning, and a meaning without a field, is an error.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from qfleet.plugins import PLUGIN_SECTIONS, list_plugins, load_plugin
from qfleet.run_config import SHORTHANDS, RunConfig

HEADER = """\
# Configuration

<!-- Generated: python docs/generate_configuration.py > docs/configuration.md -->

Every field of a run, with its type, its default and what it does. The defaults are those of the classes; the recipe
that a run starts from sets some of them otherwise (`qfleet recipes show vector` prints one). A run directory's
`config.toml` holds the values that a run really had.

A field is set in a recipe's TOML file, or by its dotted name on the command line or in Python:

```bash
qfleet train CartPole-v1 --set algo.learning_rate=0.001 --set 'network.hidden=[256, 256]' --set algo.dueling=true
```

- The value is read as TOML where it can be read so, else as text. An unknown name, a wrong type or a value out of
  range is refused with the field, the value and the fix.
- "not set" is the absence of a value. Where a field outside of `[env]` has a default and may also be off, the word
  `none` switches it off: `--set algo.optimizer.max_grad_norm=none`.
- A table's name alone stands for one field of it: SHORTHANDS.
- A resumed run takes changes to `stop.*`, `checkpoint.*`, `logging.*`, `engine.*`, `device` and `num_threads`, and to
  the strategy's numbers of roles, restart limits and placement; to nothing that decides what is learned.
"""

MEANINGS = {
    "seed": "The one seed; every role derives its own random numbers from it by name.",
    "device": 'Where the networks live; "auto" is CUDA where torch sees it, else the CPU.',
    "num_threads": 'torch\'s threads in each process; "auto" is 1 for vector observations and where every role has a '
    "process of its own, else all cores for images.",
    "algo.name": "Which algorithm: a module in `qfleet/algos/`.",
    "algo.learning_rate": "Step size, before `algo.optimizer.schedule`.",
    "algo.batch_size": "Transitions in one update.",
    "algo.gamma": "Discount per env step.",
    "algo.rollout_steps": "Vector steps of one rollout, which is learned from at once and then thrown away.",
    "algo.num_epochs": "How often a rollout is gone over.",
    "algo.num_minibatches": "Into how many shuffled minibatches, an update each; must divide `rollout_steps` times "
    "`env.num_envs`.",
    "algo.entropy_bonus": "What a nat of the policy's entropy is worth in the loss.",
    "algo.value_coefficient": "Weight of the value's loss beside the policy's.",
    "algo.n_step": "Length n of the n-step returns, assembled before replay.",
    "algo.target_update": '"hard" copies the online network every `target_period_updates`; "soft" moves a share of '
    "`target_tau` towards it after each update.",
    "algo.target_period_updates": "Updates between two copies, for hard target updates.",
    "algo.target_tau": "Share of the way at each update, for soft target updates.",
    "algo.double": "The online network chooses the bootstrap action, the target network values it.",
    "algo.dueling": "Separate value and advantage in the head.",
    "algo.noisy": "Noisy linear layers in the head; set `algo.exploration=none` with it, or epsilon adds to the noise.",
    "algo.munchausen": "The Munchausen target: the reward gets a share of the log-probability of its action, and the "
    "maximum becomes soft. Needs `double=false` and `n_step=1`.",
    "algo.munchausen_alpha": "The share.",
    "algo.munchausen_temperature": "Of the softmax over the target network's values that is the policy there.",
    "algo.munchausen_lowest": "Where temperature times log-probability is cut off.",
    "algo.num_atoms": "How many returns, evenly spaced from `v_min` to `v_max`, the probabilities are of.",
    "algo.v_min": "The lowest atom; lower discounted returns count as this one.",
    "algo.v_max": "The highest atom; higher discounted returns count as this one.",
    "algo.num_quantiles": "How many quantiles of the return are learned from a transition: N of the papers.",
    "algo.num_target_quantiles": "How many of the next one they are compared with: N' of the paper.",
    "algo.num_policy_quantiles": "How many are averaged to choose an action by: K of the paper.",
    "algo.num_cosines": "By how many cosines a fraction is described to the network.",
    "algo.head_hidden": "Width of a hidden layer behind the product of the two kinds of features; not set: none.",
    "algo.kappa": "Up to where the quantile Huber loss is quadratic; 0 is plain quantile regression.",
    "algo.loss": "Of the TD error: Huber, or half its square.",
    "algo.huber_delta": "Where the Huber loss turns from quadratic to linear; the gradient is clipped there.",
    "algo.optimizer.name": "The optimizer; sgd has no momentum.",
    "algo.optimizer.epsilon": "Added to the root in Adam, RAdam and RMSProp.",
    "algo.optimizer.beta1": "Adam's and RAdam's decay of the first moment.",
    "algo.optimizer.beta2": "Adam's and RAdam's decay of the second moment.",
    "algo.optimizer.rmsprop_decay": "RMSProp's decay of the squared gradient.",
    "algo.optimizer.schedule": "How the learning rate falls.",
    "algo.optimizer.decay_updates": "Updates until the learning rate is at its end value.",
    "algo.optimizer.end_fraction": "The end value, as a fraction of `algo.learning_rate`.",
    "algo.optimizer.max_grad_norm": "Largest norm of the gradient vector; else it is scaled down. `none`: no limit.",
    "algo.exploration.kind": '"schedule": epsilon falls over time; "per_env": each environment keeps its own; '
    '"none": no random actions.',
    "algo.exploration.start": "Epsilon at first, for the schedule.",
    "algo.exploration.end": "Epsilon from `decay_env_steps` on, for the schedule.",
    "algo.exploration.decay_env_steps": "Env steps over which epsilon falls linearly.",
    "algo.exploration.base": "Environment i of N keeps base^(1 + alpha i / (N - 1)), for per_env.",
    "algo.exploration.alpha": "See `base`.",
    "network.kind": 'The torso: "auto" (minatar_cnn for 10 x 10 x C, cnn for images of at least 36 x 36, else mlp), '
    '"mlp", "cnn" (Nature), "small_cnn" (Mnih et al. 2013), "impala_cnn", "minatar_cnn", or "package.module:Class" for '
    "your own.",
    "network.hidden": "Width of each dense layer: all of an mlp's, or those behind a cnn's convolutions; not set, the "
    "published ones: 128, 128; 512 (cnn), 256 (small_cnn, impala_cnn), 128 (minatar_cnn).",
    "network.width": "Factor on the numbers of channels of a cnn's convolutions.",
    "network.spectral_norm": "Layers whose weight is divided by its largest singular value, counted from the output: "
    "-2 is the torso's last one (Gogianu et al. 2021).",
    "network.precision": 'The torso\'s arithmetic in a network with convolutions; "auto" is bfloat16 where the '
    "processor multiplies in it. Parameters, gradients, optimizer and head are float32.",
    "network.compile": 'Whether updates go through torch.compile, which takes a while once; "auto" does on a GPU.',
    "network.activation": "Between layers.",
    "network.layer_norm": "LayerNorm behind every layer; behind a convolution over channels and pixels.",
    "network.normalize_observations": "Subtract the running mean, divide by the running deviation, clip to +-10.",
    "strategy.name": "Which strategy: a module in `qfleet/strategies/`.",
    "strategy.collect_steps": "Vector steps between two looks at how many updates are due.",
    "strategy.num_workers": "How many workers; their replays hold `replay.capacity` between them.",
    "strategy.max_restarts": "Restarts of one role before the run saves itself and stops.",
    "strategy.max_restarts_per_minute": "Restarts of all roles together within a minute before it does.",
    "strategy.worker_cpus": "CPUs that a worker asks of a cluster.",
    "strategy.worker_gpus": "GPUs that a worker asks of a cluster; a share of one is fine.",
    "strategy.worker_resources": "Further resources that a worker asks of a cluster, by their names there.",
    "strategy.wait": "Who waits for whom: sync (a barrier), ssp (at most `bound` clocks ahead of the slowest), async.",
    "strategy.bound": "With ssp: how many clocks a worker may be ahead of the slowest one.",
    "strategy.merge": "mean of one push per worker, each on arrival, or each weighed by 1 / (1 + staleness).",
    "strategy.num_servers": "How many servers share the parameter vector, a contiguous slice each.",
    "strategy.backup_workers": "With sync: extra workers; a step takes the first pushes and discards the late ones.",
    "strategy.in_flight": "On arrival: how many pushes of a worker may be under way; 2 hides the way to the servers.",
    "strategy.local_steps": "Local updates behind each pushed parameter difference; 0 pushes gradients.",
    "strategy.compression": "How a push travels: none, bf16, or top_k with error feedback.",
    "strategy.top_k_fraction": "With top_k: the share of entries that is sent.",
    "strategy.num_groups": "How many groups; workers wait for each other inside their own.",
    "engine.name": "Which engine: a module in `qfleet/engines/`.",
    "engine.role_timeout": "Seconds after which a role's call counts as stuck; a thread cannot be killed, so the run "
    "ends. Raise it where one call may take longer, such as an evaluation.",
    "replay.capacity": "Transitions kept; the oldest go first. Refused if it cannot fit into memory.",
    "replay.store_frames_once": "Stacks of frames (uint8 [K, H, W]) share their frames, at about 1/(2 K) of the "
    "memory; true refuses other observations, false stores each in full.",
    "replay.directory": "A folder with room for the replay's observations, which then lie in a file there instead of "
    'memory; "run" is one in the run directory. The file has no name and goes with the process; the operating system '
    "keeps in memory what is in use.",
    "replay.compression": '"lz4" keeps frames that are stored once compressed; the extra `compression` brings it.',
    "replay.sampler": "Every transition alike, or by TD error (proportional prioritized replay).",
    "replay.samples_per_insert": "Transitions trained on per transition inserted, once `min_transitions` are in.",
    "replay.min_transitions": "Transitions inserted before the first update.",
    "replay.priority_exponent": "Alpha of prioritized replay: 0 draws uniformly, 1 in proportion to the TD error.",
    "replay.importance_exponent_start": "Beta of the importance weights at the first update.",
    "replay.importance_exponent_end": "Beta from `importance_anneal_updates` on.",
    "replay.importance_anneal_updates": "Updates over which beta rises linearly.",
    "evaluation.every_env_steps": "Env steps between validations.",
    "evaluation.episodes": "Episodes of a validation.",
    "evaluation.final_episodes": "Held-out episodes at the end of the run.",
    "evaluation.num_envs": "Environments stepped side by side in an evaluation; not set: one per episode where the "
    "environment has its own vector version, else at most 16.",
    "evaluation.max_episode_steps": "Time limit of an evaluation episode where the environment has none.",
    "stop.until_return": 'Mean return to stop at; "registered" is the threshold in the environment\'s registration, if '
    "it has one.",
    "stop.confirm_episodes": "Fresh episodes on which a validation that reaches the target is played again; where this "
    "is no more than `evaluation.episodes`, the validation itself counts.",
    "stop.confirm_stderr": "It counts when mean - this many standard errors is still at or above the target.",
    "stop.max_env_steps": "Env steps in all. `none`: no limit.",
    "stop.max_updates": "Updates in all.",
    "stop.max_seconds": "Seconds of training in all, validation not counted.",
    "checkpoint.every_env_steps": "Env steps between scheduled checkpoints; one more is written at the end.",
    "checkpoint.keep": "How many of the newest stay.",
    "logging.every_env_steps": "Env steps between two lines of `metrics.jsonl`.",
    "logging.tensorboard": "Write TensorBoard events too.",
    "logging.wandb": "Project of Weights & Biases that the same numbers go to (extra `wandb`).",
    "logging.mlflow": "Tracking URI of the MLflow server or store that the same numbers go to (extra `mlflow`).",
    "init.from": "A run directory whose best policy gives a new run its first weights.",
}


class Row(NamedTuple):
    """One field: its name in TOML, and the cells of its line."""

    name: str
    kind: str
    default: str
    meaning: str


def describe_type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words: "integer >= 1", "huber, mse"."""
    if "$ref" in schema:
        return describe_type(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        options = [describe_type(option, definitions) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(options)
    if "enum" in schema:
        return ", ".join(f'"{value}"' for value in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    kind = schema["type"]
    if kind == "array":
        return f"list of {describe_type(schema['items'], definitions)}"
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in limits.items() if key in schema]
    names = {"string": "text", "object": "table"}
    return " ".join([names.get(kind, kind), ", ".join(bounds)]).strip()


def describe_default(value: object) -> str:
    """A default as TOML writes it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, (tuple, list)):
        return f"`{list(value)}`"
    return f"`{value}`" if value != {} else "`{}`"


def attribute_lines(cls: type[BaseModel]) -> dict[str, str]:
    """The meanings under "Attributes:" in a class's docstring."""
    _, _, body = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.split(r"\n(?=    \w+: )", "\n" + body)
    pairs = (entry.strip().split(": ", 1) for entry in entries if ": " in entry)
    return {name: " ".join(text.split()) for name, text in pairs}


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return (text[:1].upper() + text[1:]).rstrip(".") + "."


def rows(cls: type[BaseModel], where: str, used: set[str]) -> Iterator[Row]:
    """The fields of a section that are not sections themselves."""
    schema = cls.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    documented = attribute_lines(cls)
    for name, info in cls.model_fields.items():
        if is_section(info.annotation):
            continue
        shown = info.alias or name
        key = f"{where}.{shown}".lstrip(".")
        meaning = info.description or documented.get(name) or MEANINGS.get(key)
        if meaning is None:
            raise SystemExit(f"{key} has no meaning: add it to MEANINGS in docs/generate_configuration.py")
        used.add(key)
        default = describe_default(info.get_default(call_default_factory=True))
        yield Row(shown, describe_type(schema["properties"][shown], definitions), default, sentence(meaning))


def is_section(annotation: object) -> bool:
    """Whether a field holds a table of fields of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def table(found: list[Row]) -> list[str]:
    """Markdown."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return [*lines, *(f"| `{row.name}` | {row.kind} | {row.default} | {row.meaning} |" for row in found)]


def summary(cls: type[BaseModel]) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def sections() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """(heading, dotted name, class) of every table, plugins and inner tables included."""
    for name, info in RunConfig.model_fields.items():
        if name in PLUGIN_SECTIONS:
            for plugin in list_plugins(name):
                cls = load_plugin(name, plugin).Config
                yield f"[{name}], {name} = {plugin}", name, cls
                for inner, inner_info in cls.model_fields.items():
                    if is_section(inner_info.annotation):
                        yield f"[{name}.{inner}]", f"{name}.{inner}", inner_info.annotation
        elif is_section(info.annotation):
            assert isinstance(info.annotation, type)
            yield f"[{name}]", name, info.annotation
            for inner, inner_info in info.annotation.model_fields.items():
                if is_section(inner_info.annotation):
                    yield f"[{name}.{inner}]", f"{name}.{inner}", inner_info.annotation


def page() -> str:
    """The whole page."""
    short = ", ".join(f"`{key}` for `{key}.{field}`" for key, field in SHORTHANDS.items())
    shorthands = textwrap.fill(
        f"- A table's name alone stands for one field of it: {short}.", 118, subsequent_indent="  "
    )
    header = HEADER.replace("- A table's name alone stands for one field of it: SHORTHANDS.", shorthands)
    used: set[str] = set()
    lines = [header, "## The run itself", "", *table(list(rows(RunConfig, "", used)))]
    done: set[str] = set()
    for heading, where, cls in sections():
        if heading in done:
            continue
        done.add(heading)
        lines += ["", f"## {heading}", "", textwrap.fill(summary(cls), 118), "", *table(list(rows(cls, where, used)))]
    unused = sorted(set(MEANINGS) - used)
    if unused:
        raise SystemExit(f"MEANINGS without a field: {', '.join(unused)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
