"""TOML run file -> RunConfig: every setting of a training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starpo_train.errors import ConfigError
from starpo_train.tomlfile import read_config

Aggregation = Literal[
    "traj-mean",
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
]
AlgorithmName = Literal[
    "auto",
    "starpo",
    "topr",
    "topr_reference",
    "awr",
    "awac",
    "dro",
    "kto",
    "dpo",
    "filtered_bc",
]
AdvantageName = Literal[
    "grpo",
    "dr_grpo",
    "rloo",
    "maxrl",
    "gdpo",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "gigpo",
    "gae",
    "bilevel_gae",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection:
    """Where the run goes."""

    output: Path
    """Folder of the run; must not hold another run."""
    seed: int = 0
    """Order of the trajectories and everything else that is random."""
    name: str | None = None
    """Name shown in reports; the folder's name when absent."""
    trackers: tuple[str, ...] = ()
    """Where metrics go beside metrics.jsonl: tensorboard | wandb | mlflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """What is trained on."""

    dataset: Path
    """Folder written by `starpo-trace export`, with its `manifest.json`."""
    split: str = "train"
    """Which rows of the dataset: train | test."""
    models: tuple[str, ...] = ()
    """Train only turns sampled by these models; empty: every turn."""
    truncated: Literal["auto", "keep", "drop", "drop_failed"] = "auto"
    """Trajectories cut by a limit: keep (their recorded reward counts; bi-level GAE bootstraps
    from the critic), drop, or drop_failed, those below the threshold: that time ran out does not say
    which turn was wrong. auto: drop_failed for `algorithm.name = "auto"`, else keep."""
    logprobs: Literal["raw", "processed"] = "raw"
    """What the server returned for turns sampled at a temperature other than 1: raw, those of
    temperature 1 (vLLM's default), from which no ratio can be formed; or processed, those of the
    temperature (vLLM's `--logprobs-mode processed_logprobs`), at which the policy is scored then."""
    behaviour: Path | None = None
    """Log-probabilities of turns that lack them, written by `starpo-train behaviour`."""
    lossy_rendering: Literal["drop", "keep"] = "drop"
    """Trajectories without recorded ids of which the model's chat template loses a part, such as
    tool definitions or reasoning (docs/tokens.md): leave them out, or train on what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """What is trained."""

    path: str
    """Model folder, or the name of a model in the hub's local cache."""
    lora_rank: int = 0
    """0 trains every weight, otherwise a LoRA of this rank on the linear layers."""
    lora_alpha: float | None = None
    """LoRA scale; twice the rank when absent."""
    attention: Literal["auto", "tree", "packed", "rows"] = "auto"
    """tree: several rows per forward pass, what they share at their beginning computed once;
    packed: each row its own causal segment; rows: one at a time. auto takes the first that gives
    the loaded model's own numbers in a check."""
    device: str = "auto"
    """cpu | cuda | cuda:1 ...; auto: cuda when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; weights stay float32. auto: bfloat16 on cuda, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSection:
    """How rewards become gradients."""

    name: AlgorithmName = "auto"
    """auto picks from what the data allows and says why."""
    advantage: AdvantageName = "grpo"
    """grpo, dr_grpo, rloo, maxrl, gdpo, reinforce_pp_baseline, gigpo: against other attempts at the
    same task; gae, bilevel_gae: against a turn-level critic; reinforce_pp: against all tokens."""
    singleton: Literal["drop", "global_baseline", "learned_value"] = "drop"
    """A task with one attempt: advantage 0, or against all trajectories, or a critic's value."""
    group_filter: Literal["none", "starpo_s", "snr"] = "none"
    """Which groups to train on: all; `keep_groups` of them (StarPO-S); those with `snr_top_p` of the
    reward deviation (RAGEN-2). Both leave lone attempts out, which have none."""
    keep_groups: float = 0.25
    """starpo_s: share of the groups, those of highest reward deviation."""
    snr_top_p: float = 0.9
    """snr: share of the groups' summed deviation, the highest first."""
    soft_filter: bool = False
    """Multiply advantages with the group's reward deviation over the largest one."""
    gigpo_omega: float = 1.0
    """GiGPO: weight of the comparison of turns that saw the same, beside that of whole runs."""
    loss: Literal["ppo_clip", "gspo", "cispo", "cispo_trl", "sapo", "dppo_tv"] = "ppo_clip"
    """StarPO: how ratios and advantages make a loss (docs/algorithms.md)."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """ppo_clip, gspo and cispo: how far a ratio counts, 1 - low to 1 + high."""
    ratio_cap: float = 5.0
    """cispo_trl: largest weight."""
    dual_clip: float | None = None
    """ppo_clip: bound of the loss where the advantage is negative, as a ratio; 3 is usual."""
    proximal: Literal["none", "epoch"] = "none"
    """none: ratios to the behaviour policy; epoch: to the policy at the epoch's start, times a
    `correction` for what that has moved away from the behaviour (decoupled PPO, TIS)."""
    correction: Literal[
        "truncate", "mask", "sequence_truncate", "sequence_mask", "off_policy_mask"
    ] = "truncate"
    """With `proximal = "epoch"`: what becomes of pi_proximal / mu above `correction_cap`, per
    token or as the trajectory's product; off_policy_mask: no ratio, but bad tokens of a trajectory
    whose mean log mu - log pi_proximal is above it do not count."""
    correction_cap: float = 2.0
    correction_floor: float = 0.0
    """mask, sequence_mask: ratios below this do not count either (IcePop)."""
    overlong_length: int = 0
    """Sampled tokens at which a trajectory's reward has lost 1 (DAPO's soft punishment); 0: none."""
    overlong_buffer: int = 0
    """Over how many tokens before that it loses it, evenly."""
    kl_coef: float = 0.0
    """StarPO: weight of the divergence from the model the run began with."""
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = "k3"
    estimated_logprobs: Literal["refuse", "accept"] = "refuse"
    """StarPO and TOPR on log-probabilities of a fitted behaviour model (data.behaviour): the run
    and its checkpoints are stamped `estimated`."""
    baseline: Literal["auto", "none", "task_mean", "critic"] = "auto"
    """AWR, AWAC, DRO, TOPR: what a reward is compared with: the mean of the task's attempts (all
    trajectories for a lone one), or the critic's value of the first turn. auto: none for TOPR,
    whose rewards are then mapped to -1..1, task_mean for AWR and DRO."""
    beta: float | None = None
    """AWR, AWAC: temperature of the weights exp(A / beta), absent: the standard deviation of A;
    DPO, KTO, DRO: how dear it is to leave the model that the run began with, absent: 0.1."""
    weight_max: float = 20.0
    """AWR and AWAC: largest weight."""
    pairs_per_task: int = 4
    """DPO: pairs made of each task's attempts, the furthest apart in reward first."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_ceiling: float | None = None
    """An epoch ends early when KL(behaviour | trained) on a step is above this, in nats/token."""
    ess_floor: float | None = None
    """An epoch ends early when less than this share of a step's tokens is left after importance
    weights, (sum rho)^2 / (n sum rho^2)."""
    gamma_turn: float = 0.95
    """bilevel_gae, gigpo: discount from turn to turn."""
    gamma_token: float = 1.0
    """gae, reinforce_pp: discount from sampled token to sampled token."""
    lambda_: float = 1.0
    """gae, bilevel_gae: `lambda` in the run file."""
    process_reward_weight: float = 0.0
    """gae, bilevel_gae, reinforce_pp, gigpo: weight of the turns' own rewards beside the outcome at
    the last turn."""
    shaping_weight: float = 0.0
    """The same four: weight of the shaping that the dataset's recipe gives each turn."""
    reward_threshold: float | None = None
    """Filtered BC keeps rewards at or above this, KTO calls them desirable; absent: the middle of
    the range seen."""
    aggregation: Aggregation = "traj-mean"
    """traj-mean: each trajectory weighs the same (the paper's 1/|tau|); token-mean: each token;
    seq-mean-...: each row, by its tokens' mean (GRPO) or sum (-norm: over the longest row's number
    of tokens, Dr.GRPO); token-sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSection:
    """How the steps are taken."""

    epochs: int = 1
    trajectories_per_step: int = 64
    order: Literal["tasks", "shuffled"] = "tasks"
    """tasks: attempts at one task are in one step, as far as that holds them, and share what they
    begin with; shuffled: every trajectory by itself."""
    tokens_per_pack: int = 8192
    """Tokens per forward pass; a longer row is a pack of its own."""
    learning_rate: float = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    beta2: float = 0.999
    warmup_fraction: float = 0.03
    """Share of all steps over which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    checkpoint_every_steps: int = 0
    """0: at the end only."""
    keep_checkpoints: int = 2
    """Older ones are removed after a newer one is committed, but not the one to go back to; 0 keeps
    all."""
    threads: int = 0
    """Torch threads; 0 leaves torch's choice."""
    rank_timeout_s: float = 900.0
    """On several devices: how long a rank waits for the others, such as for a checkpoint that rank
    0 writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosticsSection:
    """How a run is watched (docs/diagnostics.md)."""

    early_stop: bool = True
    """End the run, with a checkpoint, when a rule finds that it has collapsed; false: only say so."""
    every_steps: int = 0
    """Measure the mutual information between what turns read and what they say, before the first
    step and every so many; 0: never. Costs a forward pass of `samples` answers behind each of as many
    prompts."""
    samples: int = 64
    """Turns that it is measured on."""
    held_back: int = 64
    """Score up to so many good trajectories of the dataset's split `test`, and as many bad ones, before
    the first step, at each checkpoint and at the end; 0: none. A run that loses the good ones stops, and
    its result is the last checkpoint that had not, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run, every default resolved."""

    run: RunSection
    data: DataSection
    model: ModelSection
    algorithm: AlgorithmSection = field(default_factory=AlgorithmSection)
    train: TrainSection = field(default_factory=TrainSection)
    diagnostics: DiagnosticsSection = field(default_factory=DiagnosticsSection)

    def __post_init__(self) -> None:
        """Refuse values that no run could use."""
        for where, value, low, high in (
            ("algorithm.keep_groups", self.algorithm.keep_groups, 0.0, 1.0),
            ("algorithm.snr_top_p", self.algorithm.snr_top_p, 0.0, 1.0),
            ("algorithm.clip_low", self.algorithm.clip_low, 0.0, 1.0),
            ("algorithm.ess_floor", self.algorithm.ess_floor or 0.0, 0.0, 1.0),
            ("algorithm.gamma_turn", self.algorithm.gamma_turn, 0.0, 1.0),
            ("algorithm.gamma_token", self.algorithm.gamma_token, 0.0, 1.0),
            ("algorithm.lambda", self.algorithm.lambda_, 0.0, 1.0),
            ("train.warmup_fraction", self.train.warmup_fraction, 0.0, 1.0),
            ("train.learning_rate", self.train.learning_rate, 0.0, 1.0),
            ("train.beta2", self.train.beta2, 0.0, 0.999999),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{where} = {value}: must be between {low:g} and {high:g}.")
        for where, count in (
            ("train.epochs", self.train.epochs),
            ("train.trajectories_per_step", self.train.trajectories_per_step),
            ("train.tokens_per_pack", self.train.tokens_per_pack),
            ("train.learning_rate", self.train.learning_rate),
            ("train.max_grad_norm", self.train.max_grad_norm),
            ("model.lora_alpha", _or_one(self.model.lora_alpha)),
            ("train.rank_timeout_s", self.train.rank_timeout_s),
            ("algorithm.correction_cap", self.algorithm.correction_cap),
            ("algorithm.ratio_cap", self.algorithm.ratio_cap),
            ("algorithm.kl_ceiling", _or_one(self.algorithm.kl_ceiling)),
            ("algorithm.weight_max", self.algorithm.weight_max),
            ("algorithm.pairs_per_task", self.algorithm.pairs_per_task),
            ("algorithm.beta", _or_one(self.algorithm.beta)),
            ("diagnostics.samples", self.diagnostics.samples),
        ):
            if not count > 0:
                raise ConfigError(f"{where} = {count}: must be greater than 0.")
        for where, count in (
            ("model.lora_rank", self.model.lora_rank),
            ("train.checkpoint_every_steps", self.train.checkpoint_every_steps),
            ("train.keep_checkpoints", self.train.keep_checkpoints),
            ("algorithm.kl_coef", self.algorithm.kl_coef),
            ("algorithm.correction_floor", self.algorithm.correction_floor),
            ("algorithm.clip_high", self.algorithm.clip_high),
            ("algorithm.overlong_length", self.algorithm.overlong_length),
            ("algorithm.overlong_buffer", self.algorithm.overlong_buffer),
            ("train.threads", self.train.threads),
            ("diagnostics.every_steps", self.diagnostics.every_steps),
            ("diagnostics.held_back", self.diagnostics.held_back),
            ("algorithm.gigpo_omega", self.algorithm.gigpo_omega),
        ):
            if count < 0:
                raise ConfigError(f"{where} = {count}: must be 0 or greater.")
        if self.algorithm.dual_clip is not None and self.algorithm.dual_clip <= 1:
            raise ConfigError(
                f"algorithm.dual_clip = {self.algorithm.dual_clip}: must be greater than 1, where "
                "ratios begin; 3 is usual."
            )
        if (self.algorithm.advantage, self.algorithm.singleton) == ("gdpo", "learned_value"):
            raise ConfigError(
                "algorithm.singleton = 'learned_value' with advantage 'gdpo': a critic values the "
                "sum of the rewards, not each; use 'drop' or 'global_baseline'."
            )


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def read_run_config(path: Path) -> RunConfig:
    """Run file -> RunConfig; relative paths resolve against the run file's folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, a value of the wrong type or range.
    """
    return read_config(path, RunConfig)
