"""A checkpoint of isthmus: what continues text is handed in, since `data` knows no engine."""

from collections.abc import Sequence

from isthmus.data.synthetic.protocols import Completion, Request, Sampler, digest


class SampledGenerator:
    """Continues prompts in batches. Requests of a batch that sample differently are continued one after another."""

    parallel = 1

    def __init__(self, name: str, sampler: Sampler, batch: int) -> None:
        self.name, self._sampler = name, sampler
        self.batch = max(2, batch)  # 1 would mean: as soon as they come
        self._at_once = batch
        self.fingerprint = digest(["checkpoint", sampler.fingerprint])

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        answers: dict[str, Completion] = {}
        groups: dict[tuple[int, float, float, tuple[str, ...]], list[Request]] = {}
        for request in requests:
            settings = (request.max_tokens, request.temperature, request.top_p, request.stop)
            groups.setdefault(settings, []).append(request)
        for (max_tokens, temperature, top_p, stop), group in groups.items():
            for first in range(0, len(group), self._at_once):
                part = group[first : first + self._at_once]
                found = self._sampler.complete(
                    [request.prompt.plain for request in part],
                    max_tokens=max_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    stop=stop,
                    seeds=[request.seed for request in part],
                )
                answers |= {request.key: answer for request, answer in zip(part, found, strict=True)}
        return [answers[request.key] for request in requests]

    def stop(self) -> None:
        pass
