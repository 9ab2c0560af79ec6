"""Plans: phases, caps, temperature and UniMax become segments that serve what they promise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.accounting import account, effective_tokens
from isthmus.data.config import DataConfig, Mixing, PhaseConfig, SourceConfig
from isthmus.data.mixture import MixSource, Mixture, Phase, phases_of, unimax
from isthmus.data.order import Order, Shape
from isthmus.data.phases import PhaseLog
from isthmus.errors import UserError

LENGTH = 8


def source(windows: int, weight: float = 1.0, max_epochs: float | None = None, content: str = "x") -> MixSource:
    return MixSource(Shape(windows, windows * LENGTH + 1, LENGTH, 4, 2), content, weight, max_epochs)


def mixture(sources: dict[str, MixSource], samples: int, phases: list[Phase] | None = None, **more: object) -> Mixture:
    return Mixture(
        sources=sources,
        phases=phases or [Phase("", 0, None)],
        seed=1,
        samples=samples,
        window_tokens=LENGTH,
        **more,  # type: ignore[arg-type]
    )


def served(mix: Mixture, start: int = 0, stop: int | None = None) -> dict[str, int]:
    order = Order(mix.shapes, mix.segments(), mix.seed)
    return order.counts(start, mix.samples if stop is None else stop)


def test_a_cap_gives_its_share_to_the_others_in_proportion() -> None:
    mix = mixture({"a": source(1_000, 6), "b": source(1_000, 2), "c": source(10, 2, max_epochs=4)}, 1_000)
    # c asks for 200 and has 40; a and b share 960 as 3 to 1.
    assert served(mix) == {"a": 720, "b": 240, "c": 40}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_source_ever_passes_its_cap_and_nothing_else_is_lost(data: st.DataObject) -> None:
    sources = {}
    for name in data.draw(st.sets(st.sampled_from("abcde"), min_size=1), "names"):
        cap = data.draw(st.one_of(st.none(), st.floats(0.1, 5)), "cap")
        sources[name] = source(
            data.draw(st.integers(1, 300), "windows"), data.draw(st.floats(0.001, 10), "weight"), cap
        )
    samples = data.draw(st.integers(1, 3_000), "samples")
    edge = data.draw(st.integers(1, 3_000), "edge")
    phases = [Phase("one", 0, edge), Phase("two", edge, None, {sorted(sources)[0]: data.draw(st.floats(0.01, 5))})]
    mix = mixture(sources, samples, phases)
    caps = [entry.cap for entry in sources.values()]
    room = None if None in caps else sum(cap for cap in caps if cap is not None)
    if room is not None and room < samples:
        with pytest.raises(UserError, match="max_epochs leaves"):
            mix.segments()
        return
    given = served(mix)
    assert sum(given.values()) == samples
    for name, entry in sources.items():
        assert entry.cap is None or given[name] <= entry.cap


def test_phases_begin_where_they_should_and_may_leave_sources_out() -> None:
    config = DataConfig(
        sources={"a": SourceConfig(), "b": SourceConfig(weight=0)},
        phases=[PhaseConfig(tokens=800), PhaseConfig(name="anneal", weights={"b": 3})],
    )
    phases = phases_of(config, LENGTH)
    assert [(phase.name, phase.start, phase.stop) for phase in phases] == [("phase 1", 0, 100), ("anneal", 100, None)]
    mix = mixture({"a": source(50), "b": source(50, 0)}, 140, phases)
    assert served(mix, 0, 100) == {"a": 100, "b": 0}
    assert served(mix, 100) == {"a": 10, "b": 30}


def test_temperature_flattens() -> None:
    sources = {"large": source(10_000), "small": source(100)}
    assert served(mixture(sources, 1_010, mixing=Mixing.temperature)) == {"large": 1_000, "small": 10}
    flat = served(mixture(sources, 1_100, mixing=Mixing.temperature, temperature=2.0))
    assert flat == {"large": 1_000, "small": 100}  # sqrt(10,000) : sqrt(100) = 10 : 1


def test_unimax_is_equal_until_the_cap() -> None:
    # Of 90 each: the smallest gives 4 epochs of 10, the rest is shared equally by the other two.
    assert unimax({"a": 10, "b": 100, "c": 1_000}, 270, 4) == {"a": 40, "b": 115, "c": 115}
    sources = {"a": source(10), "b": source(100), "c": source(1_000)}
    assert served(mixture(sources, 270, mixing=Mixing.unimax)) == {"a": 40, "b": 115, "c": 115}


def test_unimax_epochs_are_those_of_the_run() -> None:
    assert unimax({"a": 10, "b": 100}, 100, 4, {"a": 30, "b": 0}) == {"a": 10, "b": 90}
    sources = {"a": source(10), "b": source(100), "c": source(1_000)}
    phases = [Phase("one", 0, 90), Phase("two", 90, None)]
    mix = mixture(sources, 270, phases, mixing=Mixing.unimax)
    assert served(mix, 0, 90) == {"a": 30, "b": 30, "c": 30}
    assert served(mix, 90) == {"a": 10, "b": 85, "c": 85}
    assert [phase.sources["a"].asked for phase in account(mix, {}, 0).phases] == pytest.approx([1 / 3, 10 / 180])
    log = PhaseLog.begin(mixture(sources, 270, phases, mixing=Mixing.unimax))
    assert log.go_on(mixture(sources, 400, mixing=Mixing.unimax), 90)
    assert log.order().counts(0, 400)["a"] == 40
    with pytest.raises(UserError, match=r"needs 41 samples, and unimax_epochs or max_epochs leaves 40 \(a 40\)"):
        mixture({"a": source(10)}, 41, mixing=Mixing.unimax).segments()


def test_repetition_is_worth_what_the_paper_says() -> None:
    assert effective_tokens(100, 100) == 100
    # 4 epochs: R = 3, 1 - exp(-3 / 15.387756) = 0.177134, and 1 + 15.387756 x 0.177134 = 3.72567.
    assert effective_tokens(1_000, 4_000) == pytest.approx(3_725.67, abs=0.02)
    assert effective_tokens(1_000, 10**9) == pytest.approx(16_387.756)  # U + U R*, however often


def test_warnings_name_what_is_repeated_and_what_is_synthetic() -> None:
    mix = mixture({"few": source(10, 1), "made": source(500, 3), "much": source(500, 1)}, 500)
    found = account(mix, {"made": True}, real_floor=0.5)
    assert any(line.startswith("few is repeated 10.0 times") for line in found.warnings)
    assert any("60% synthetic leaves 40% real" in line for line in found.warnings)
    assert not account(mix, {"made": True}, real_floor=0.4).warnings[1:]
    assert sum(entry.tokens for entry in found.total.values()) == 500 * LENGTH


def test_binding_caps_say_where_the_tokens_went() -> None:
    found = account(mixture({"a": source(100), "b": source(10, 1, max_epochs=2)}, 100), {}, real_floor=0)
    assert found.notes == ["whole run: max_epochs binds; tokens not taken from b 240 come from a 240"]


def test_the_log_goes_on_by_what_was_served() -> None:
    first = mixture({"a": source(40, 1, max_epochs=2), "b": source(400)}, 200)
    log = PhaseLog.begin(first)
    assert not log.go_on(first, 50)
    assert log.go_on(mixture({"a": source(40, 1, max_epochs=1), "b": source(400), "c": source(9)}, 200), 50)
    order = log.order()
    before, after = order.counts(0, 50), order.counts(0, 200)
    assert after["a"] <= 40
    assert before["c"] == 0 < after["c"]
    again = PhaseLog.load(log.dump())
    assert [again.order()[sample] for sample in range(0, 200, 7)] == [order[sample] for sample in range(0, 200, 7)]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"a": source(40, content="y"), "b": source(400)}, "data.sources.a: holds other data"),
        ({"a": source(39), "b": source(400)}, "data.sources.a: its windows are cut"),
    ],
)
def test_changed_sources_are_refused_by_name(now: dict[str, MixSource], message: str) -> None:
    log = PhaseLog.begin(mixture({"a": source(40), "b": source(400)}, 200))
    with pytest.raises(UserError, match=message):
        log.go_on(mixture(now, 200), 50)
