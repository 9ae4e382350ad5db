"""Byte-pair encoding, learned from the text it is used for."""

import heapq
import re
from collections import Counter, defaultdict
from itertools import pairwise

PIECES = re.compile(r" ?\w+|[^\w\s]|\s+")


class Tokenizer:
    """256 bytes and the most frequent merges of two neighbours within a piece of text."""

    def __init__(self, text, vocab_size):
        self.ranks = {}
        self._cache = {}
        self._learn(text, vocab_size - 256)

    def encode(self, text):
        ids = []
        for piece in PIECES.findall(text):
            if piece not in self._cache:
                self._cache[piece] = self._encode_piece(list(piece.encode()))
            ids.extend(self._cache[piece])
        return ids

    def _encode_piece(self, ids):
        while len(ids) > 1:
            pair = min(pairwise(ids), key=lambda pair: self.ranks.get(pair, 1 << 30))
            if pair not in self.ranks:
                break
            ids = merged(ids, pair, 256 + self.ranks[pair])
        return ids

    def _learn(self, text, n_merges):
        pieces = [(list(piece.encode()), n) for piece, n in Counter(PIECES.findall(text)).items()]
        counts, where = Counter(), defaultdict(set)
        for index, (ids, n) in enumerate(pieces):
            for pair in pairwise(ids):
                counts[pair] += n
                where[pair].add(index)
        heap = [(-n, pair) for pair, n in counts.items()]
        heapq.heapify(heap)
        while heap and len(self.ranks) < n_merges:
            n, pair = heapq.heappop(heap)
            if -n != counts[pair]:  # it has been counted anew since
                if counts[pair]:
                    heapq.heappush(heap, (-counts[pair], pair))
                continue
            new = 256 + len(self.ranks)
            self.ranks[pair] = new - 256
            touched = set()
            for index in where.pop(pair):
                ids, n = pieces[index]
                for old in pairwise(ids):
                    counts[old] -= n
                ids = merged(ids, pair, new)
                pieces[index] = ids, n
                for now in pairwise(ids):
                    counts[now] += n
                    where[now].add(index)
                    touched.add(now)
            counts[pair] = 0
            for now in touched:
                heapq.heappush(heap, (-counts[now], now))


def merged(ids, pair, new):
    """Put `new` for every occurrence of the pair."""
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
