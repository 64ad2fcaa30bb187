from typing import Any

import pytest
import torch
from torch import nn

from modeling.heads import IGNORED_LABEL, MaskedLMOutput, score_targets

NUM_CLASSES = 11
score: Any = score_targets


def make_batch(dtype=torch.float64, share=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=dtype)
    labels = torch.randint(NUM_CLASSES, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) >= share] = IGNORED_LABEL
    torch.manual_seed(seed)
    return hidden.requires_grad_(), labels, nn.Linear(5, NUM_CLASSES).to(dtype)


def test_loss_sum_and_counts_are_those_of_a_loop_over_all_slots():
    hidden, labels, head = make_batch()
    output = score(hidden, labels, head, keep_logits=True)
    loss, num_targets, num_correct = 0.0, 0, 0
    for row in range(3):
        for slot in range(7):
            label = int(labels[row, slot])
            if label == IGNORED_LABEL:
                continue
            logits = (head.weight @ hidden[row, slot] + head.bias).tolist()
            loss += torch.tensor(logits, dtype=torch.float64).logsumexp(0).item() - logits[label]
            num_correct += logits[label] == max(logits)
            num_targets += 1
    assert output.loss_sum.item() == pytest.approx(loss, rel=1e-12)
    assert output.loss.item() == pytest.approx(loss / num_targets, rel=1e-12)
    assert (output.num_targets.item(), output.num_correct.item()) == (num_targets, num_correct)
    assert 0 < num_correct < num_targets


def test_class_zero_is_a_target_like_any_other():
    hidden, labels, head = make_batch()
    labels.fill_(IGNORED_LABEL)[1, 2] = 0
    output = score(hidden, labels, head, keep_logits=True)
    assert output.num_targets.item() == 1
    assert output.loss.item() == pytest.approx(-head(hidden[1, 2]).log_softmax(0)[0].item(), rel=1e-12)


def test_the_head_runs_on_targets_only_and_in_row_major_order():
    hidden, labels, head = make_batch()
    seen = []

    def decode(hidden_KD):
        seen.append(hidden_KD.detach())
        return head(hidden_KD)

    output = score(hidden, labels, decode, keep_logits=True)
    torch.testing.assert_close(seen, [hidden.detach()[labels != IGNORED_LABEL]], rtol=0, atol=0)
    torch.testing.assert_close(output.logits, head(hidden)[labels != IGNORED_LABEL])
    assert score(hidden, labels, head, keep_logits=False).logits is None


def test_a_batch_without_targets_gives_zero_and_gradients_of_zero():
    hidden, labels, head = make_batch()
    output = score(hidden, labels.fill_(IGNORED_LABEL), head, keep_logits=True)
    assert (output.loss.item(), output.loss_sum.item(), output.num_targets.item()) == (0.0, 0.0, 0)
    (output.loss_sum + output.loss).backward()
    for tensor in (hidden, head.weight, head.bias):
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), rtol=0, atol=0)


def test_half_precision_logits_are_summed_in_fp32():
    hidden, labels, head = make_batch(torch.bfloat16)
    output = score(hidden, labels, head, keep_logits=True)
    targets = labels[labels != IGNORED_LABEL]
    log_probs = output.logits.double().log_softmax(-1)
    expected = -log_probs.gather(1, targets[:, None]).sum()
    assert output.loss_sum.dtype == torch.float32
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)


def test_counts_carry_no_gradient():
    hidden, labels, head = make_batch()
    output = score(hidden, labels, head, keep_logits=True)
    assert not output.num_correct.requires_grad
    assert not output.num_targets.requires_grad


def test_labels_of_another_shape_are_refused():
    hidden, labels, head = make_batch()
    with pytest.raises(ValueError, match=r"labels have shape \[3, 6\] and the rows \[3, 7\]"):
        score(hidden, labels[:, :6], head, keep_logits=True)


def test_tuple_form_begins_with_loss_and_logits():
    output = MaskedLMOutput(loss=torch.tensor(1.0), logits=torch.tensor(2.0), loss_sum=torch.tensor(3.0))
    assert [float(value) for value in output.to_tuple()] == [1.0, 2.0, 3.0]
