"""A class that loads something expensive once per container, and then serves many inputs at once.

    kedge run examples/model_class.py
    kedge run examples/model_class.py::Speller.correct --alphabet abc --word aple

`@kedge.enter()` runs when a container starts, before any input. `kedge.parameter()` makes containers differ: each set
of values has containers of its own. The methods of an object share its slots.
"""

from __future__ import annotations

import collections
import keyword
import os
import re
import sysconfig
from pathlib import Path

import kedge

app = kedge.App("model-class")


@app.cls(max_containers=2)
@kedge.concurrent(max_inputs=8)
class Speller:
    alphabet: str = kedge.parameter(default="abcdefghijklmnopqrstuvwxyz")

    @kedge.enter()
    def learn(self) -> None:
        """The model: how often each word occurs in some modules of the standard library."""
        library = Path(sysconfig.get_paths()["stdlib"])
        text = " ".join((library / name).read_text() for name in ("argparse.py", "inspect.py", "typing.py", "ast.py"))
        self.words = collections.Counter(re.findall("[a-z]{2,}", text.lower()))
        self.words.update(keyword.kwlist)

    @kedge.method()
    def correct(self, word: str) -> str:
        """The most frequent known word that is at most one edit away."""
        candidates = [word] if word in self.words else [edit for edit in self.edits(word) if edit in self.words]
        return max(candidates, key=self.words.__getitem__, default=word)

    @kedge.method()
    def describe(self) -> tuple[int, int]:
        """Process of the container, and how many words it has learned."""
        return os.getpid(), len(self.words)

    def edits(self, word: str) -> set[str]:
        splits = [(word[:cut], word[cut:]) for cut in range(len(word) + 1)]
        shorter = {left + right[1:] for left, right in splits if right}
        swapped = {left + right[1] + right[0] + right[2:] for left, right in splits if len(right) > 1}
        changed = {left + letter + right[1:] for left, right in splits if right for letter in self.alphabet}
        longer = {left + letter + right for left, right in splits for letter in self.alphabet}
        return shorter | swapped | changed | longer


@app.local_entrypoint()
def main() -> None:
    """Corrects some words, once with all letters and once without vowels to insert."""
    wrong = ["retrun", "strign", "clas", "improt", "argumnet"]
    speller = Speller()
    print("corrected:", " ".join(speller.correct.map(wrong)))
    without_vowels = Speller(alphabet="bcdfghjklmnpqrstvwxyz")
    print("without vowels:", " ".join(without_vowels.correct.map(["clas", "fnction"])))
    process, size = speller.describe.remote()
    other_process, _ = without_vowels.describe.remote()
    print(f"words known: {size > 1000 and 'more than a thousand'}; separate containers: {process != other_process}")
