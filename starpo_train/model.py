"""Model folder -> Policy: a causal language model that scores packed rows.

Suffixes: T packed tokens, A action tokens, S turn starts, H hidden.
"""

from collections.abc import Iterator
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
from starpo_train.gatedmlp import fuse_gated_mlps
from starpo_train.head import compute_logprobs
from starpo_train.modelfolder import require_model
from starpo_train.norms import fuse_norms
from starpo_train.pack import TokenBatch, pack_rows
from starpo_train.rotary import fuse_rotary
from starpo_train.tokens import TokenSequence

PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScores:
    """What the policy says about the trained tokens of a pack."""

    logprobs_A: Tensor
    """float32, at temperature 1."""
    entropies_A: Tensor
    """float32, nats; of the whole distribution at each trained token."""


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

    def score_actions(self, batch: TokenBatch) -> PolicyScores:
        """Log-probabilities and entropies of a pack's trained tokens, with gradient."""
        ids_A = batch.action_ids_A.to(self.device)
        before_A = batch.predicted_at_A.to(self.device)
        with self._precision():
            if not self.fast_head:
                return _score_logits(self._compute_logits(batch), ids_A)
            hidden_TH = self._compute_hidden(batch)
            head = self.model.get_output_embeddings()
            if batch.layout.is_flat:
                hidden_AH = hidden_TH[before_A]
                scores = compute_logprobs(hidden_AH, head.weight, head.bias, ids_A)
                return PolicyScores(logprobs_A=scores[0], entropies_A=scores[1])
            # what several rows sampled at one place is scored once
            pairs_U, of_A = torch.unique(
                before_A * self.num_vocabulary + ids_A, return_inverse=True
            )
            hidden_UH, ids_U = (
                hidden_TH[pairs_U // self.num_vocabulary],
                pairs_U % self.num_vocabulary,
            )
            scores = compute_logprobs(hidden_UH, head.weight, head.bias, ids_U)
            return PolicyScores(logprobs_A=scores[0][of_A], entropies_A=scores[1][of_A])

    @property
    def attention(self) -> str:
        """`tree`, `packed` or `rows`, as in the configuration."""
        return "tree" if self.shared_up_to else "packed" if self.packed else "rows"

    @torch.no_grad()
    def compute_state_features(self, batch: TokenBatch) -> Tensor:
        """Hidden states [S, H] at the last prompt token before each trained turn, float32."""
        with self._precision():
            hidden_TH = self._compute_hidden(batch)
        return hidden_TH[batch.turn_starts_S.to(self.device)].float()

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


def load_policy(section: ModelSection, *, seed: int = 0) -> Policy:
    """Model folder -> Policy, every weight float32.

    Raises:
        ModelError: no such model, no tokenizer, no causal language model, or a model that cannot
            be run as asked.
    """
    device = torch.device(_choose_device(section.device))  # before anything is read
    model, tokenizer = _load_folder(section.path)
    return build_policy(model.to(device), tokenizer, section, seed=seed)


def build_policy(model: Any, tokenizer: Any, section: ModelSection, *, seed: int = 0) -> Policy:
    """A transformers model, where it is to stay -> Policy; `section.path` only names it.

    Raises:
        ModelError: the model cannot be run as asked.
    """
    register_packed_attention()
    device = model.device
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
        or (section.precision == "auto" and device.type == "cuda"),
        packed=False,
        shared_up_to=0,
        fast_head=False,
        lora=section.lora_rank > 0,
    )
    fuse_norms(model)
    if device.type == "cpu":
        fuse_gated_mlps(model)
        fuse_rotary(model)
    policy = _configure(policy, section)
    if policy.lora and policy.autocast:
        _halve_frozen_weights(policy.model)
    return policy


def merged_state_dict(policy: Policy) -> dict[str, Tensor]:
    """Weights as the plain model has them; LoRA updates are added in, on copies."""
    if not policy.lora:
        return policy.model.state_dict()
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module
        for name, module in policy.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    merged: dict[str, Tensor] = {}
    for name, tensor in policy.model.state_dict().items():
        owner, is_base, leaf = name.partition(".base_layer.")
        if is_base:
            whole = tensor.float()
            merged[f"{owner}.{leaf}"] = (
                whole + layers[owner].get_delta_weight("default") if leaf == "weight" else whole
            )
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


def _choose_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model.device = {name!r}: there is no CUDA device; use 'cpu'.")
    return name


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
    return inject_adapter_in_model(config, model)


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


def _configure(policy: Policy, section: ModelSection) -> Policy:
    """Decide how the model runs by comparing against its plain forward pass on random tokens."""
    rows = _probe_rows(policy)
    with torch.no_grad():
        expected_A = torch.cat([_plain_logprobs(policy.model, ids_T) for ids_T in rows])
    head = policy.model.get_output_embeddings()
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
            policy.model.set_attn_implementation("sdpa")
        trial = replace(policy, packed=packed, fast_head=fast_head, autocast=False)
        error = _probe_error(trial, rows, expected_A, share=False)
        shared_up_to = 0
        # on CUDA a tree has not been run yet, and is for those who ask for it
        is_wanted = wanted == "tree" or (wanted == "auto" and policy.device.type == "cpu")
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


def _score_logits(logits_AV: Tensor, ids_A: Tensor) -> PolicyScores:
    logprobs_AV = torch.log_softmax(logits_AV.float(), dim=-1)
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


def _plain_logprobs(model: Any, ids_T: Tensor) -> Tensor:
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits_TV.float(), -1).gather(1, ids_T[1:, None])[:, 0]
