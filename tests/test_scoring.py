"""Label probabilities against a plain computation, one label at a time."""

import numpy as np
import torch
from bases import one_label_at_a_time
from transformers.integrations.neftune import activate_neftune

from fintune.model.forward import common_prefix
from fintune.results.summary import explain_greedy
from fintune.scoring.greedy import greedy_label_rate
from fintune.scoring.label_scorer import LabelScorer, label_tree


def test_scores_equal_one_label_at_a_time_whatever_the_batch(toy):
    _, data, prompt, model = toy
    texts = [*data.splits["test"]["text"], "x", "a much longer text, " * 6]
    expected = one_label_at_a_time(model, prompt, texts)
    assert prompt.label_ids[0][:-1] == prompt.label_ids[1][:1]  # Up, Up or down: a first token tells nothing
    for tokens_per_batch in (1, 100, 10_000):
        found = LabelScorer(model, prompt, tokens_per_batch).log_likelihoods(texts)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    found = LabelScorer(model, prompt).probabilities(texts)
    np.testing.assert_allclose(found, torch.tensor(expected).softmax(-1).numpy(), atol=1e-4)
    for row in (0, 3):
        np.testing.assert_allclose(
            LabelScorer(model, prompt).log_likelihoods([texts[row]])[0], expected[row], atol=1e-4
        )


def test_many_texts_are_scored_in_parts_also_where_they_begin_alike(toy, monkeypatch):
    _, data, prompt, model = toy
    texts = [f"{company} cut its dividend" for company in ("Alder", "Alder Alder", "Alder Birch")]
    texts += list(data.splits["test"]["text"][:5])
    expected = one_label_at_a_time(model, prompt, texts)
    monkeypatch.setattr("fintune.model.batches.AT_ONCE", 3)
    scorer = LabelScorer(model, prompt)
    scorer.check(texts)  # computes a prefix of its own
    prefixes = []
    computed = scorer._prefix_cache
    monkeypatch.setattr(scorer, "_prefix_cache", lambda ids: prefixes.append(ids) or computed(ids))
    np.testing.assert_allclose(scorer.log_likelihoods(texts), expected, atol=1e-4)
    [prefix] = prefixes  # once, from the first three, whose first word is the same; the others share less of it
    assert len(prefix) > common_prefix(prompt.encode(texts))


def test_a_neighbour_in_the_batch_changes_nothing(toy):
    _, data, prompt, model = toy
    texts = data.splits["test"]["text"]
    alone = LabelScorer(model, prompt).log_likelihoods(texts[:1])
    with_others = LabelScorer(model, prompt).log_likelihoods([texts[0], *reversed(texts), "noise " * 20])
    np.testing.assert_allclose(with_others[0], alone[0], atol=1e-4)


def test_the_last_mlp_reads_what_the_head_reads(toy):
    _, data, prompt, model = toy
    LabelScorer(model, prompt).check(data.splits["test"]["text"])  # by whole rows, once
    read = []
    mlp = model.model.layers[-1].mlp
    hook = mlp.gate_proj.register_forward_hook(lambda module, inputs, output: read.append(output.shape[1]))
    scorer = LabelScorer(model, prompt)
    scorer.probabilities(data.splits["test"]["text"])
    hook.remove()
    assert read[0] > 10  # the instruction
    assert set(read[1:]) == {len(scorer.tree.tokens) + 1}
    assert len(mlp._forward_pre_hooks) == len(mlp._forward_hooks) == 0


def test_the_model_is_left_as_it_was(toy):
    _, _, prompt, model = toy
    model.train()
    model.set_attn_implementation("eager")
    LabelScorer(model, prompt).probabilities(["profit rose"])
    assert model.training
    assert model.config._attn_implementation == "eager"


def test_neither_noise_nor_dropout_reaches_a_score(toy):
    _, data, prompt, model = toy
    texts = data.splits["test"]["text"]
    expected = LabelScorer(model, prompt).log_likelihoods(texts)
    activate_neftune(model, 50.0)
    model.train()
    np.testing.assert_array_equal(LabelScorer(model, prompt).log_likelihoods(texts), expected)


def test_no_texts_give_no_rows(toy):
    assert LabelScorer(toy[3], toy[2]).probabilities([]).shape == (0, 3)


def test_label_tree_shares_what_labels_share():
    tree = label_tree([[5, 9], [5, 6, 9], [7, 9]])  # 9 ends
    assert tree.tokens == [5, 6, 7]
    assert tree.depth == [1, 2, 1]
    assert tree.sees.tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert [[tree.edges[edge] for edge in path] for path in tree.paths] == [
        [(0, 5), (1, 9)],
        [(0, 5), (1, 6), (2, 9)],
        [(0, 7), (3, 9)],
    ]


def test_common_prefix_leaves_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 1
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[1, 2, 3, 4], [1, 2]]) == 1


def test_generation_check_names_the_cause(toy):
    _, data, prompt, model = toy
    report = greedy_label_rate(model, prompt, data.splits["test"]["text"])
    assert report["rows"] == len(data.splits["test"])
    assert 0 <= report["share"] < 0.9  # untrained
    assert explain_greedy(report)
    for miss, cause in (("<think>\nHm", "reasoning chain"), ("<|im_end|>", "empty"), ("The answer", "other words")):
        assert cause in explain_greedy({"rows": 2, "share": 0.5, "first_miss": miss})
    assert explain_greedy({"rows": 64, "share": 1.0}) is None
