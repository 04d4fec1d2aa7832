"""Print the rows of train.jsonl: capitals, chemical elements and powers, each with four to six options."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

ASK = "Answer with the letter of the right option inside \\boxed{}."

CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Brazil": "Brasília",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "Egypt": "Cairo",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "Ghana": "Accra",
    "Hungary": "Budapest",
    "Iceland": "Reykjavík",
    "India": "New Delhi",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Mongolia": "Ulaanbaatar",
    "Morocco": "Rabat",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Vietnam": "Hanoi",
}

ELEMENTS = {
    "antimony": "Sb",
    "argon": "Ar",
    "calcium": "Ca",
    "carbon": "C",
    "chlorine": "Cl",
    "copper": "Cu",
    "gold": "Au",
    "helium": "He",
    "iron": "Fe",
    "lead": "Pb",
    "lithium": "Li",
    "magnesium": "Mg",
    "manganese": "Mn",
    "mercury": "Hg",
    "neon": "Ne",
    "nickel": "Ni",
    "potassium": "K",
    "silicon": "Si",
    "silver": "Ag",
    "sodium": "Na",
    "sulfur": "S",
    "tin": "Sn",
    "tungsten": "W",
    "zinc": "Zn",
}

POWERS = [(base, exponent) for base in (2, 3, 4, 5, 6, 7) for exponent in (3, 4, 5, 6)]


def questions() -> Iterator[tuple[str, str, list[str]]]:
    """Yield each question, its answer, and wrong answers."""
    for country, capital in CAPITALS.items():
        yield f"What is the capital of {country}?", capital, [city for city in CAPITALS.values() if city != capital]
    for element, symbol in ELEMENTS.items():
        yield f"What is the chemical symbol of {element}?", symbol, [other for other in ELEMENTS.values() if other != symbol]
    for base, exponent in POWERS:
        power = base**exponent
        wrong = {power + base, power - base, power * base, power // base, base * exponent, power + 1} - {power}
        yield f"What is {base} to the power of {exponent}?", str(power), [str(number) for number in sorted(wrong)]


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    choose = random.Random(0)
    for i, (question, answer, wrong) in enumerate(questions()):
        texts = [answer, *choose.sample(wrong, choose.randint(3, 5))]
        choose.shuffle(texts)
        options = [{letter: text} for letter, text in zip("ABCDEF", texts, strict=False)]
        listed = "\n".join(f"{letter}: {text}" for option in options for letter, text in option.items())
        yield {
            "id": f"choice-{i:03}",
            "messages": [{"role": "user", "content": f"{ASK}\n\n{question}\n{listed}"}],
            "options": options,
            "expected_answer": "ABCDEF"[texts.index(answer)],
            "grading_mode": "strict_single_letter_boxed",
        }


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row, ensure_ascii=False))
