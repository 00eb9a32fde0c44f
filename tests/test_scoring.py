"""Label probabilities against a plain computation, one label at a time."""

import sys

import numpy as np
import pytest
import torch
from fintune.runs import answers_at_once, explain_answers

from fintune.scoring import Scorer, common_prefix, evaluation, label_tree


def one_label_at_a_time(model, prompt, texts) -> np.ndarray:
    scores = []
    with torch.no_grad():
        for ids in prompt.encode(texts):
            row = []
            for label in prompt.label_ids:
                log_probs = model(torch.tensor([ids + label])).logits[0].double().log_softmax(-1)
                row.append(sum(log_probs[len(ids) + i - 1, token].item() for i, token in enumerate(label)))
            scores.append(row)
    return np.array(scores)


def test_scores_equal_one_label_at_a_time_whatever_the_batch(toy):
    _, data, prompt, model = toy
    texts = [*data.splits["test"]["text"], "x", "a much longer text, " * 6]
    expected = one_label_at_a_time(model, prompt, texts)
    assert prompt.label_ids[0][:-1] == prompt.label_ids[1][:1]  # Up, Up or down: a first token tells nothing
    for tokens_per_batch in (1, 100, 10_000):
        found = Scorer(model, prompt, tokens_per_batch).log_likelihoods(texts)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    found = Scorer(model, prompt).probabilities(texts)
    np.testing.assert_allclose(found, torch.tensor(expected).softmax(-1).numpy(), atol=1e-4)
    for row in (0, 3):
        np.testing.assert_allclose(Scorer(model, prompt).log_likelihoods([texts[row]])[0], expected[row], atol=1e-4)


def test_many_texts_are_scored_in_parts_also_where_they_begin_alike(toy, monkeypatch):
    _, data, prompt, model = toy
    texts = [f"{company} cut its dividend" for company in ("Alder", "Alder Alder", "Alder Birch")]
    texts += list(data.splits["test"]["text"][:5])
    expected = one_label_at_a_time(model, prompt, texts)
    monkeypatch.setattr("fintune.scoring.AT_ONCE", 3)
    scorer = Scorer(model, prompt)
    prefixes = []
    computed = scorer._prefix_cache
    monkeypatch.setattr(scorer, "_prefix_cache", lambda ids: prefixes.append(ids) or computed(ids))
    np.testing.assert_allclose(scorer.log_likelihoods(texts), expected, atol=1e-4)
    [prefix] = prefixes  # once, from the first three, whose first word is the same; the others share less of it
    assert len(prefix) > common_prefix(prompt.encode(texts))


def test_a_neighbour_in_the_batch_changes_nothing(toy):
    _, data, prompt, model = toy
    texts = data.splits["test"]["text"]
    alone = Scorer(model, prompt).log_likelihoods(texts[:1])
    with_others = Scorer(model, prompt).log_likelihoods([texts[0], *reversed(texts), "noise " * 20])
    np.testing.assert_allclose(with_others[0], alone[0], atol=1e-4)


def test_the_last_mlp_reads_what_the_head_reads(toy):
    _, data, prompt, model = toy
    read = []
    mlp = model.model.layers[-1].mlp
    hook = mlp.gate_proj.register_forward_hook(lambda module, inputs, output: read.append(output.shape[1]))
    scorer = Scorer(model, prompt)
    scorer.probabilities(data.splits["test"]["text"])
    hook.remove()
    assert read[0] > 10  # the instruction
    assert set(read[1:]) == {len(scorer.tree.tokens) + 1}
    assert len(mlp._forward_pre_hooks) == len(mlp._forward_hooks) == 0


def test_lean_layers_are_the_models_own(toy):
    module, mlp = sys.modules[type(toy[3]).__module__], toy[3].model.layers[0].mlp
    theirs, plain = module.apply_rotary_pos_emb, type(mlp).forward
    query, key, hidden = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 5, 32)
    angles = torch.rand(2, 5, 4).repeat(1, 1, 2)  # transformers gives each pair's angle twice
    with evaluation(toy[3]):
        assert module.apply_rotary_pos_emb is not theirs
        assert type(mlp).forward is not plain
        found = [*module.apply_rotary_pos_emb(query, key, angles.cos(), angles.sin()), mlp(hidden)]
        expected = [*theirs(query, key, angles.cos(), angles.sin()), plain(mlp, hidden)]
    assert module.apply_rotary_pos_emb is theirs
    assert type(mlp).forward is plain
    for ours, transformers in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, transformers, rtol=1e-6, atol=1e-6)


def test_the_model_is_left_as_it_was(toy):
    _, _, prompt, model = toy
    model.train()
    model.set_attn_implementation("eager")
    Scorer(model, prompt).probabilities(["profit rose"])
    assert model.training
    assert model.config._attn_implementation == "eager"


def test_no_texts_give_no_rows(toy):
    assert Scorer(toy[3], toy[2]).probabilities([]).shape == (0, 3)


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
    report = answers_at_once(model, prompt, data.splits["test"]["text"])
    assert report["rows"] == len(data.splits["test"])
    assert 0 <= report["share"] < 0.9  # untrained
    assert explain_answers(report)
    for miss, cause in (("<think>\nHm", "reasoning chain"), ("<|im_end|>", "empty"), ("The answer", "other words")):
        assert cause in explain_answers({"rows": 2, "share": 0.5, "first_miss": miss})
    assert explain_answers({"rows": 64, "share": 1.0}) is None


def test_bent_logits_are_refused(toy):
    toy[3].config.final_logit_softcapping = 30.0
    with pytest.raises(Exception, match="final_logit_softcapping"):
        Scorer(toy[3], toy[2])
