"""Model folder -> Policy: a causal language model that scores packed rows.

Suffixes: T packed tokens, A action tokens, S turn starts, H hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from starpo_train.attention import PACKED_ATTENTION, register_packed_attention
from starpo_train.config import ModelSection
from starpo_train.errors import ModelError
from starpo_train.fused import fuse_layers
from starpo_train.head import compute_logprobs
from starpo_train.modelfolder import require_model
from starpo_train.pack import TokenBatch, pack_rows
from starpo_train.ranks import ALONE, Ranks
from starpo_train.tokens import TokenSequence

PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScores:
    """What the policy says about the trained tokens of a pack."""

    logprobs_A: Tensor
    """float32, at the temperature of each token's turn."""
    entropies_A: Tensor
    """float32, nats; of the whole distribution at each trained token and its temperature."""


def _call(work: Callable[[], Any]) -> Any:
    return work()


@dataclass(slots=True, kw_only=True)
class Policy:
    """A loaded model, how it must be run, and its tokenizer."""

    model: Any
    """The transformers model; with LoRA its linear layers are wrapped in place."""
    tokenizer: Any
    device: torch.device
    autocast: bool
    """Matrix products in bfloat16."""
    packed: bool
    """Several rows per forward pass; False: one at a time."""
    shared_up_to: int
    """Longest row that may share its prefix with others; 0: none may."""
    fast_head: bool
    """The output head is one plain linear layer, so its logits may be computed in chunks."""
    lora: bool
    ranks: Ranks = ALONE
    """The processes that its weights are spread over."""
    run: Callable[[Callable[[], Any]], Any] = _call
    """Does some work with the model's weights at hand."""

    def score_actions(self, batch: TokenBatch) -> PolicyScores:
        """Log-probabilities and entropies of a pack's trained tokens, with gradient."""
        ids_A = batch.action_ids_A.to(self.device)
        before_A = batch.predicted_at_A.to(self.device)
        heat_A = batch.temperatures_A
        heat_A = None if heat_A is None else heat_A.to(self.device)
        with self._precision():
            if not self.fast_head:
                return _score_logits(self._compute_logits(batch), ids_A, heat_A)
            scores = self.run(lambda: self._score_hidden(batch, before_A, ids_A, heat_A))
            return PolicyScores(logprobs_A=scores[0], entropies_A=scores[1])

    def _score_hidden(
        self, batch: TokenBatch, before_A: Tensor, ids_A: Tensor, heat_A: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden_TH = self._compute_hidden(batch)
        head = self.model.get_output_embeddings()
        if batch.layout.is_flat:
            return compute_logprobs(hidden_TH[before_A], head.weight, head.bias, ids_A, heat_A)
        # what several rows sampled at one place is scored once
        before_U, ids_U, heat_U, of_A = _find_distinct(
            before_A, ids_A, heat_A, num_ids=self.num_vocabulary
        )
        scores = compute_logprobs(hidden_TH[before_U], head.weight, head.bias, ids_U, heat_U)
        return scores[0][of_A], scores[1][of_A]

    @property
    def attention(self) -> str:
        """`tree`, `packed` or `rows`, as in the configuration."""
        return "tree" if self.shared_up_to else "packed" if self.packed else "rows"

    @torch.no_grad()
    def compute_state_features(self, batch: TokenBatch) -> Tensor:
        """Hidden states [S, H] at the last prompt token before each trained turn, float32."""
        with self._precision():
            hidden_TH = self.run(lambda: self._compute_hidden(batch))
        return hidden_TH[batch.turn_starts_S.to(self.device)].float()

    def limit_pack(self, tokens_per_pack: int) -> int:
        """Tokens of a pack: a model that takes rows one by one passes once for each of them, and
        every rank must make as many passes as the others.
        """  # noqa: D205
        return tokens_per_pack if self.packed or self.ranks.size == 1 else 1

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors that the optimizer changes, tied ones once."""
        return (item for item in self.model.named_parameters() if item[1].requires_grad)

    @property
    def num_vocabulary(self) -> int:
        """Rows of the embedding: ids at or above this cannot be trained on."""
        return self.model.get_input_embeddings().num_embeddings

    def _compute_hidden(self, batch: TokenBatch) -> Tensor:
        decoder = self.model.base_model
        parts = [
            decoder(**inputs).last_hidden_state[0] for inputs, _ in self._forward_inputs(batch)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _compute_logits(self, batch: TokenBatch) -> Tensor:
        """Logits [A, V] through whatever the model puts around its head (scaling, capping)."""
        before_A = batch.predicted_at_A
        logits = []
        for inputs, (start, end) in self._forward_inputs(batch):
            inside_A = before_A[(before_A >= start) & (before_A < end)] - start
            keep_A = inside_A.to(self.device)
            logits.append(self.model(**inputs, logits_to_keep=keep_A).logits[0])
        return torch.cat(logits)

    def _forward_inputs(
        self, batch: TokenBatch
    ) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """Arguments of each forward pass, and the part of T that it covers."""
        ids_T = batch.input_ids_T.to(self.device)
        if self.packed:
            positions_T = batch.position_ids_T.to(self.device)
            yield (
                {
                    "input_ids": ids_T[None],
                    "position_ids": positions_T[None],
                    "use_cache": False,
                    "tree": batch.layout,
                },
                (0, len(ids_T)),
            )
            return
        start = 0
        for length in batch.layout.lengths_M:
            row_T = ids_T[start : start + length]
            yield {"input_ids": row_T[None], "use_cache": False}, (start, start + length)
            start += length

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def load_policy(section: ModelSection, *, seed: int = 0, ranks: Ranks = ALONE) -> Policy:
    """Model folder -> Policy, every weight float32; for several ranks whole and on the CPU.

    Raises:
        ModelError: no such model, no tokenizer, no causal language model, or a model that cannot
            be run as asked.
    """
    device = choose_device(section.device, ranks)  # before anything is read
    model, tokenizer = _load_folder(section.path)
    if ranks.size == 1:
        model = model.to(device)
    return build_policy(model, tokenizer, section, seed=seed, ranks=ranks)


def build_policy(
    model: Any, tokenizer: Any, section: ModelSection, *, seed: int = 0, ranks: Ranks = ALONE
) -> Policy:
    """A transformers model, where it is to stay -> Policy; `section.path` only names it.

    Raises:
        ModelError: the model cannot be run as asked.
    """
    register_packed_attention()
    device = model.device
    target = device if ranks.size == 1 else choose_device(section.device, ranks)
    _silence_dropout(model)
    if section.lora_rank > 0:
        model = _add_lora(model, section, seed=seed)
        model.to(device)
    model.train(section.gradient_checkpointing)
    if section.gradient_checkpointing:
        # renamed in the course of transformers 5
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        device=device,
        autocast=section.precision == "bfloat16"
        or (section.precision == "auto" and target.type == "cuda"),
        packed=False,
        shared_up_to=0,
        fast_head=False,
        lora=section.lora_rank > 0,
        ranks=ranks,
    )
    fuse_layers(
        model,
        device=target.type,
        is_low=policy.autocast,
        compute=lambda: _probe_plainly(policy),
    )
    policy = _configure(policy, section, tree=target.type == "cpu")
    if policy.lora and policy.autocast:
        _halve_frozen_weights(policy.model)
    return policy


def merged_state_dict(policy: Policy) -> dict[str, Tensor]:
    """Weights as the plain model has them; LoRA updates are added in, on copies."""
    state = policy.model.state_dict()
    return merge_lora(policy.model, state) if policy.lora else state


def merge_lora(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights of a model with LoRA -> those of the plain model, on copies."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, is_base, leaf = name.partition(".base_layer.")
        if is_base:
            whole = tensor.float()
            if leaf == "weight":
                layer = layers[owner]
                down, up = (state[f"{owner}.lora_{part}.default.weight"] for part in "AB")
                update = (up @ down) * layer.scaling["default"]
                whole = whole + (update.T if layer.fan_in_fan_out else update)
            merged[f"{owner}.{leaf}"] = whole
        elif ".lora_" not in name:
            merged[name] = tensor
    return merged


def _load_folder(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_model(path, where="model.path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model.path = {path!r}: cannot be loaded as a causal language model with its "
            f"tokenizer ({' '.join(str(error).split())}); give a folder that transformers can load."
        ) from error
    return model, tokenizer


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """`model.device` -> the device of this process.

    Raises:
        ModelError: it is not there, or one that several ranks would share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model.device = {name!r}: there is no CUDA device; use 'cpu'.")
    if ranks.size > 1 and name != "cpu":
        if name != "cuda":
            raise ModelError(f"model.device = {name!r}: each rank takes its own; use 'cuda'.")
        if ranks.local_rank >= torch.cuda.device_count():
            raise ModelError(
                f"rank {ranks.rank} is number {ranks.local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} CUDA devices; start no more ranks than that on each."
            )
        name = f"cuda:{ranks.local_rank}"
    try:
        return torch.device(name)
    except RuntimeError:
        raise ModelError(
            f"model.device = {name!r}: no such kind of device; use 'auto', 'cpu' or 'cuda'."
        ) from None


def _silence_dropout(model: nn.Module) -> None:
    """Dropout would make the ratio to the recorded log-probabilities noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _add_lora(model: Any, section: ModelSection, *, seed: int) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)  # the A matrices are random
    rank = section.lora_rank
    config = LoraConfig(
        r=rank,
        lora_alpha=int(section.lora_alpha if section.lora_alpha is not None else 2 * rank),
        target_modules="all-linear",
    )
    try:
        return inject_adapter_in_model(config, model)
    except ValueError as error:  # such as Mamba, whose layers peft cannot wrap
        raise ModelError(
            f"model.lora_rank = {rank}: no LoRA for {section.path!r} "
            f"({' '.join(str(error).split())}); use 0."
        ) from error


def _halve_frozen_weights(model: nn.Module) -> None:
    """Keep the weights below LoRA in bfloat16, where that holds them exactly.

    The products use them in bfloat16 anyway, and would cast them anew each time. Not the head: it
    may share its weight with the embedding, which begins a float32 residual stream.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for parameter in layer.get_base_layer().parameters(recurse=False):
            low = parameter.detach().bfloat16()
            if not parameter.requires_grad and torch.equal(low.float(), parameter):
                parameter.data = low


def _configure(policy: Policy, section: ModelSection, *, tree: bool) -> Policy:
    """Decide how the model runs by comparing against its plain forward pass on random tokens.

    `tree`: `auto` may choose one.
    """
    rows, expected_A = _probe_rows(policy), _probe_plainly(policy)
    head = policy.model.get_output_embeddings()
    own_attention = policy.model.config._attn_implementation
    wanted = section.attention
    if wanted != "rows":
        policy.model.set_attn_implementation(PACKED_ATTENTION)
    candidates = [(True, True), (True, False)] if wanted != "rows" else []
    if wanted in ("auto", "rows"):
        candidates += [(False, True), (False, False)]
    worst = float("inf")
    for packed, fast_head in candidates:
        if fast_head and type(head) is not nn.Linear:
            continue
        if not packed and policy.model.config._attn_implementation == PACKED_ATTENTION:
            policy.model.set_attn_implementation(own_attention)  # eager, where it caps scores
        trial = replace(policy, packed=packed, fast_head=fast_head, autocast=False)
        error = _probe_error(trial, rows, expected_A, share=False)
        shared_up_to = 0
        # on CUDA a tree has not been run yet, and is for those who ask for it
        is_wanted = wanted == "tree" or (wanted == "auto" and tree)
        if packed and error <= PROBE_TOLERANCE and is_wanted:
            error_in_tree = _probe_error(trial, rows, expected_A, share=True)
            if error_in_tree <= PROBE_TOLERANCE:
                shared_up_to = _find_window(policy.model)
            elif wanted == "tree":
                error = error_in_tree
        worst = min(worst, error)
        if error <= PROBE_TOLERANCE:
            return replace(trial, autocast=policy.autocast, shared_up_to=shared_up_to)
    raise ModelError(
        f"model.attention = {wanted!r}: log-probabilities of {section.path!r} differ by {worst:.2g} "
        "nats from the model's own forward pass; use 'auto' or 'rows'."
    )


def _find_window(model: Any) -> int:
    """Longest row in which every token sees all before it."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return 1 << 62 if window is None else int(window)


def _find_distinct(
    before_A: Tensor, ids_A: Tensor, heat_A: Tensor | None, *, num_ids: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Each (place, id, temperature) once, U of them, and which of them each token is."""
    keys_A = before_A * num_ids + ids_A
    if heat_A is None:
        keys_U, of_A = torch.unique(keys_A, return_inverse=True)
        return keys_U // num_ids, keys_U % num_ids, None, of_A
    heats, heat_of_A = torch.unique(heat_A, return_inverse=True)
    keys_U, of_A = torch.unique(keys_A * len(heats) + heat_of_A, return_inverse=True)
    pairs_U = keys_U // len(heats)
    return pairs_U // num_ids, pairs_U % num_ids, heats[keys_U % len(heats)], of_A


def _score_logits(logits_AV: Tensor, ids_A: Tensor, heat_A: Tensor | None) -> PolicyScores:
    logits_AV = logits_AV.float() if heat_A is None else logits_AV.float() / heat_A[:, None]
    logprobs_AV = torch.log_softmax(logits_AV, dim=-1)
    return PolicyScores(
        logprobs_A=logprobs_AV.gather(1, ids_A[:, None])[:, 0],
        entropies_A=-(logprobs_AV.exp() * logprobs_AV).sum(1),
    )


def _probe_rows(policy: Policy) -> list[Tensor]:
    """Random rows, two of which begin alike."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(policy.num_vocabulary, (length,), generator=generator)
        for length in (7, 12, 3)
    ]
    rows[1][:4] = rows[0][:4]
    return [ids_T.to(policy.device) for ids_T in rows]


def _probe_error(policy: Policy, rows: list[Tensor], expected_A: Tensor, *, share: bool) -> float:
    batch = pack_rows([_as_row(ids_T) for ids_T in rows], range(len(rows)), share=share)
    try:
        with torch.no_grad():
            scores = policy.score_actions(batch)
    except (TypeError, NotImplementedError, AttributeError, KeyError, RuntimeError):
        return float("inf")  # an architecture that cannot be run this way
    return float((scores.logprobs_A - expected_A).abs().max())


def _as_row(ids_T: Tensor) -> TokenSequence:
    """A row of which every token but the first is trained."""
    trained_T = np.arange(len(ids_T)) > 0
    return TokenSequence(
        trajectory=0,
        input_ids_T=ids_T.cpu().numpy(),
        action_mask_T=trained_T,
        turn_T=trained_T - 1,
        turn_end_mask_T=np.zeros_like(trained_T),
        turn_start_mask_T=np.zeros_like(trained_T),
        logprobs_T=None,
        recorded=True,
    )


@torch.no_grad()
def _probe_plainly(policy: Policy) -> Tensor:
    """What the model's own forward pass gives for the probe's rows."""
    return torch.cat([_plain_logprobs(policy.model, ids_T) for ids_T in _probe_rows(policy)])


def _plain_logprobs(model: Any, ids_T: Tensor) -> Tensor:
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits_TV.float(), -1).gather(1, ids_T[1:, None])[:, 0]
