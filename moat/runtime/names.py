"""Names for runs that nobody named."""

from __future__ import annotations

import os

_ADJECTIVES = (
    "able amber ample bold brave brisk calm clear clever cosmic crisp deft eager early fair fast fine firm "
    "fond fresh gentle glad golden grand happy hardy honest humble jolly keen kind lively lucid lucky mellow "
    "merry mild neat nimble noble patient plain polite proud quick quiet ready round sharp silent smart snug "
    "solid steady sunny swift tidy vivid warm wise witty"
)
_ANIMALS = (
    "badger beaver bison bream carp cat crane crow deer dingo dove duck eagle egret elk falcon ferret finch "
    "fox frog gecko goat goose gull hare hawk heron horse ibex ibis jay koala lark lemur lion llama lynx "
    "magpie marten mole moose moth newt ocelot orca osprey otter owl panda perch pike puffin quail rabbit "
    "raven robin salmon seal shrew sloth snail stork swan tapir tern tiger toad trout turtle vole walrus "
    "whale wolf wombat wren yak zebra"
)


def random_name() -> str:
    return f"{_any_of(_ADJECTIVES.split())}-{_any_of(_ANIMALS.split())}"


def _any_of(words: list[str]) -> str:
    return words[int.from_bytes(os.urandom(4), "big") % len(words)]
