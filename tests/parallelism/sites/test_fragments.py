"""When which part of the model crosses."""

from hypothesis import given
from hypothesis import strategies as st

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.sites.fragments import due_fragment, fragment_of


@given(every=st.integers(1, 300), data=st.data())
def test_each_fragment_leaves_exactly_every_h_steps(every: int, data: st.DataObject) -> None:
    fragments = data.draw(st.integers(1, every))
    steps: dict[int, list[int]] = {}
    for step in range(1, 3 * every + 1):
        if (number := due_fragment(step, every, fragments)) is not None:
            steps.setdefault(number, []).append(step)
    assert set(steps) == set(range(fragments))
    for number, found in steps.items():
        # The paper's schedule, arXiv 2501.18512: t mod H = floor(p H / P).
        assert all(step % every == number * every // fragments for step in found)
        assert len(found) == 3
        assert found[1] - found[0] == found[2] - found[1] == every


def test_layers_are_strided_and_the_rest_balances() -> None:
    model = ModelConfig(num_layers=6, hidden_size=64, vocab_size=1000, num_attention_heads=4)
    layers = [fragment_of(f"decoder.layers.{layer}.mlp.linear_fc1.weight", model, 4) for layer in range(6)]
    assert layers == [0, 1, 2, 3, 0, 1]
    # Fragments 2 and 3 hold one layer less.
    outside = ["embedding.word_embeddings.weight", "output_layer.weight"]
    assert sorted(fragment_of(name, model, 4) for name in outside) == [2, 3]
    assert all(fragment_of(name, model, 1) == 0 for name in [*outside, "decoder.final_layernorm.weight"])
