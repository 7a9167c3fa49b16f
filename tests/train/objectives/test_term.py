"""The check between the losses and the weights."""

import pytest
import torch

from hilda_schema.errors import TrainError
from hilda_train.objectives.term import Term, require_finite


def term(value: float) -> Term:
    return Term(torch.tensor(value), {})


def test_finite_losses_pass():
    require_finite({"point": term(0.0), "occupancy": term(-1e30)}, "step 1")


def test_every_broken_term_is_named_with_the_place_and_a_remedy():
    terms = {"point": term(float("nan")), "global_context": term(1.0), "occupancy": term(float("inf"))}
    with pytest.raises(TrainError, match=r"point, occupancy is not finite at step 7, frame a/b/c") as caught:
        require_finite(terms, "step 7, frame a/b/c")
    assert "global_context" not in str(caught.value)
    assert "hilda-cache verify" in caught.value.remedy
