"""Batches: bounded by number and by bytes, in order, and a large item goes alone."""

from __future__ import annotations

from gymq.store.batching import Batcher, batches


def test_batches_are_bounded_by_number_and_by_bytes_and_keep_the_order():
    items = [1, 2, 3, 50, 4, 9, 9, 1, 1, 1, 1]
    cut = list(batches(items, 4, lambda item: item, 10))
    assert cut == [[1, 2, 3], [50], [4], [9], [9, 1], [1, 1, 1]]
    assert not list(batches([], 4, lambda item: 1, 10))


async def test_a_batcher_sends_large_items_in_several_batches(monkeypatch):
    sent: list[list[int]] = []

    async def flush(batch: list[int]) -> list[int]:
        sent.append(batch)
        return batch

    batcher = Batcher(flush, lambda task: None, lambda megabytes: megabytes << 20)
    assert [await future for future in [batcher.ask(item) for item in (9, 8, 2, 1, 20)]] == [9, 8, 2, 1, 20]
    assert sent == [[9], [8, 2, 1], [20]]
