"""Rows that share prefixes: every unique token once, and the numbers of rows one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from starpo_train.attention import attend_packed
from starpo_train.config import ModelSection
from starpo_train.model import load_policy
from starpo_train.pack import pack_all, pack_rows, plan_rows
from starpo_train.tokens import TokenSequence
from starpo_train.tree import build_tree, make_layout

ROWS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=10).map(np.array), min_size=1, max_size=8
)


def see(tree):
    """[T, T]: which token sees which."""
    ends = torch.tensor(np.repeat(tree.layout.ends_M, tree.layout.lengths_M))
    at = torch.arange(len(ends))
    return (at[None] <= at[:, None]) & (at[:, None] < ends[None])


def test_a_tree_by_hand():
    """`a b c d`, `a b e`, `f`: nodes in preorder, and where each subtree ends."""
    tree = build_tree([np.array([1, 2, 5]), np.array([6]), np.array([1, 2, 3, 4])])
    assert tree.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6]
    assert tree.positions_T.tolist() == [0, 1, 2, 3, 2, 0]
    assert tree.layout == make_layout([2, 2, 1, 1], [5, 4, 5, 6], depth=4)
    assert [place.tolist() for place in tree.places] == [[0, 1, 4], [5], [0, 1, 2, 3]]
    assert not tree.layout.is_flat
    assert build_tree([np.array([1, 2]), np.array([3])]).layout.is_flat


@given(ROWS)
@settings(max_examples=300, deadline=None)
def test_every_unique_prefix_is_one_token(rows):
    """As many tokens as there are different prefixes; each sees its own row's, and no other."""
    tree = build_tree(rows)
    prefixes = {tuple(row[: i + 1].tolist()) for row in rows for i in range(len(row))}
    assert len(tree.input_ids_T) == len(prefixes)
    seen = see(tree)
    for row, place in zip(rows, tree.places, strict=True):
        assert tree.input_ids_T[place].tolist() == row.tolist()
        assert tree.positions_T[place].tolist() == list(range(len(row)))
        for i, token in enumerate(place):
            assert seen[token].nonzero().flatten().tolist() == place[: i + 1].tolist()


@given(ROWS, st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_attention_equals_a_dense_mask(rows, num_groups):
    """Output and gradients, float64, to the last digits; keys with fewer heads, too."""
    tree = build_tree(rows)
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8), (4 // num_groups, 8), (4 // num_groups, 8)]
    length = len(tree.input_ids_T)
    inputs = [
        torch.randn(1, length, *shape, generator=generator, dtype=torch.float64)
        .transpose(1, 2)
        .requires_grad_()
        for shape in shapes
    ]
    module = type("Layer", (), {"num_key_value_groups": num_groups})
    out, _ = attend_packed(module, *inputs, None, tree=tree.layout)
    expected = scaled_dot_product_attention(
        *inputs, attn_mask=see(tree), enable_gqa=True
    ).transpose(1, 2)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    for actual, wanted in zip(
        torch.autograd.grad(out, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=0)


def make_row(ids, *, first_action=1, weight=1.0):
    ids = np.asarray(ids)
    mask = np.arange(len(ids)) >= first_action
    starts = np.arange(len(ids)) == first_action - 1
    return TokenSequence(
        trajectory=0,
        input_ids_T=ids,
        action_mask_T=mask,
        turn_T=np.where(mask, 0, -1),
        turn_end_mask_T=np.arange(len(ids)) == len(ids) - 1,
        turn_start_mask_T=starts,
        logprobs_T=np.where(mask, -1.0 - ids, 0.0).astype(np.float32),
        weight=weight,
        recorded=True,
    )


def make_attempts():
    """Attempts at one task, two of them alike to the last token, and a row of another."""
    prompt = list(range(5, 25))
    return [
        make_row([*prompt, 30, 31, 32], first_action=20),
        make_row([*prompt, 30, 33, 34, 35], first_action=20, weight=0.5),
        make_row([*prompt, 30, 31, 32], first_action=20),
        make_row([*prompt[:10], 40, 41], first_action=10),
        make_row([50, 51, 52]),
    ]


def score(policy, batch):
    """Log-probabilities, entropies and gradients, with another factor on each row's tokens."""
    policy.model.zero_grad()
    scores = policy.score_actions(batch)
    order = torch.argsort(torch.tensor(batch.rows_R)[batch.row_of_A], stable=True)
    factors = torch.linspace(0.5, 1.5, batch.num_actions)
    loss = (factors * scores.logprobs_A[order]).sum() + 0.1 * scores.entropies_A.sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in policy.trained_parameters()}
    return scores.logprobs_A[order].detach(), scores.entropies_A[order].detach(), gradients


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_a_tree_changes_neither_loss_nor_gradient(hand, tmp_path, family, checkpointing):
    """Within 1e-5 of the rows one after another; each unique token is computed once."""
    section = ModelSection(
        path=str(hand.model(tmp_path / "m", family=family, vocab_size=64)),
        device="cpu",
        gradient_checkpointing=checkpointing,
    )
    policy = load_policy(section)
    assert policy.attention == "tree"
    rows = make_attempts()
    flat = score(policy, pack_rows(rows, [4, 0, 3, 1, 2]))
    batch = pack_rows(rows, [4, 0, 3, 1, 2], share=True)
    assert (batch.num_tokens, batch.num_row_tokens) == (20 + 3 + 3 + 2 + 3, 85)
    tree = score(policy, batch)
    for actual, expected in zip(tree[:2], flat[:2], strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    for name, gradient in flat[2].items():
        torch.testing.assert_close(tree[2][name], gradient, atol=1e-5, rtol=1e-5)


def test_what_belongs_to_an_action_stays_with_it():
    """Ids, weights, recorded log-probabilities, turn starts: as in the rows."""
    rows = make_attempts()
    flat, tree = (pack_rows(rows, [1, 0, 4], share=share) for share in (False, True))
    for name in ("action_ids_A", "row_of_A", "weights_A", "behaviour_logprobs_A"):
        assert torch.equal(getattr(flat, name), getattr(tree, name))
    assert tree.input_ids_T[tree.turn_starts_S].tolist() == [24, 24, 50]
    assert tree.input_ids_T[tree.predicted_at_A].tolist() == [24, 30, 33, 34, 24, 30, 31, 50, 51]


def test_states_of_turns_are_the_same(hand, model_folder):
    """Features for the critic, from a tree and from rows."""
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    rows = [make_row([1, 2, 3, 4], first_action=2), make_row([1, 2, 5], first_action=2)]
    flat, tree = (
        policy.compute_state_features(pack_rows(rows, [0, 1], share=share))
        for share in (False, True)
    )
    torch.testing.assert_close(tree, flat, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [10, 24, 30, 1000])
def test_packs_keep_to_the_budget(budget):
    """What shares is together as far as it fits; every row is in one pack."""
    rows = make_attempts()
    packs = list(pack_all(rows, range(5), tokens_per_pack=budget, shared_up_to=1000))
    assert sorted(row for pack, _ in packs for row in pack) == [0, 1, 2, 3, 4]
    for pack, batch in packs:
        assert batch.num_tokens <= budget or len(set(pack)) == 1
    if budget == 1000:
        assert [batch.num_tokens for _, batch in packs] == [31]
    if budget == 24:
        assert sorted(batch.num_tokens for _, batch in packs) == [15, 23, 24]


def test_attempts_above_the_budget_become_even_packs():
    """A prompt of 20 and four answers of 10: two and two (40 and 40 tokens), not three and one."""
    prompt = list(range(20))
    rows = [make_row([*prompt, *range(100 * n, 100 * n + 10)]) for n in range(1, 5)]
    packs = list(pack_all(rows, range(4), tokens_per_pack=55, shared_up_to=1000))
    assert [(pack, batch.num_tokens) for pack, batch in packs] == [([0, 1], 40), ([2, 3], 40)]


def test_what_shares_little_is_packed_as_before():
    """A common beginning of a few tokens does not bind rows together."""
    rows = [make_row([1, *range(10 * n + 2, 10 * n + 12)]) for n in range(6)]
    flat, tree = (
        plan_rows(rows, range(6), tokens_per_pack=25, share=share) for share in (False, True)
    )
    assert [len(pack) for pack in flat] == [len(pack) for pack in tree] == [2, 2, 2]


def test_a_window_shorter_than_a_row_is_not_shared(hand, tmp_path):
    """Then rows lie one after another, and have the model's own numbers."""
    folder = hand.model(
        tmp_path / "m", use_sliding_window=True, sliding_window=12, max_window_layers=0
    )
    policy = load_policy(ModelSection(path=str(folder), device="cpu"))
    assert policy.shared_up_to == 12
    options = {"tokens_per_pack": 100, "shared_up_to": policy.shared_up_to}
    short = [make_row([1, 2, 3, 4]), make_row([1, 2, 3, 5])]
    long = [make_row([1] * 13), make_row([*([1] * 12), 2])]
    assert [b.layout.is_flat for _, b in pack_all(short, [0, 1], **options)] == [False]
    assert [b.layout.is_flat for _, b in pack_all(long, [0, 1], **options)] == [True]
    with pytest.raises(NotImplementedError, match="window"):
        policy.score_actions(pack_rows(long, [0, 1], share=True))


@pytest.mark.parametrize("attention", ["packed", "rows"])
def test_sharing_can_be_switched_off(model_folder, attention):
    """`model.attention` names what is wanted."""
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu", attention=attention))
    assert (policy.attention, policy.shared_up_to) == (attention, 0)


def test_bfloat16_is_near_float32_in_a_tree(hand, model_folder):
    """Under autocast queries and values come in different types; a tree takes them as SDPA does."""
    rows = hand.rows([40, 44, 36])
    rows[1].input_ids_T[:20] = rows[0].input_ids_T[:20]
    batch = pack_rows(rows, range(3), share=True)
    assert not batch.layout.is_flat
    scores = []
    for precision in ("float32", "bfloat16"):
        section = ModelSection(path=str(model_folder), device="cpu", precision=precision)
        policy = load_policy(section)
        logprobs_A = policy.score_actions(batch).logprobs_A
        logprobs_A.sum().backward()
        scores.append(logprobs_A.detach())
        assert all(p.grad is not None for _, p in policy.trained_parameters())
    assert 0 < float((scores[0] - scores[1]).abs().mean()) < 0.05
