"""How a rule says that an entry cannot follow what is before it."""


class Broken(Exception):
    """The entry cannot follow what is before it."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def same(what: str, signed: object, expected: object, whose: str) -> None:
    require(signed == expected, f"the {what} is {signed}; {whose} says {expected}")
