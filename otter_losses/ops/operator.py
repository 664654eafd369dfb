"""What custom operators share: a flat list of arguments that a NamedTuple names, from the schema to the backward.

torch.library calls an operator with one flat list, and shows it again to the fake and to the backward. Each list is a
NamedTuple here: its fields are the schema, and whoever gets the list unpacks it by them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, get_type_hints

from torch import Tensor

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    int: "SymInt",
    bool: "bool",
    str: "str",
    Sequence[int]: "SymInt[]",
}


def schema(arguments: type[tuple[Any, ...]], results: int) -> str:
    """The operator's schema: its arguments by their fields, and so many tensors it returns."""
    return f"({', '.join(_parameters(arguments))}) -> ({', '.join(['Tensor'] * results)})"


def _parameters(fields: type[tuple[Any, ...]]) -> Iterator[str]:
    """Fields that are NamedTuples themselves stand for their own fields."""
    for name, kind in get_type_hints(fields).items():
        if hasattr(kind, "_fields"):
            yield from _parameters(kind)
        else:
            yield f"{_SCHEMA_TYPES[kind]} {name}"


def save_for_backward(ctx: Any, arguments: tuple[Any, ...]) -> None:
    """Keep a flat list for `saved_arguments`: tensors as autograd keeps them, all else as it is."""
    ctx.is_tensor = tuple(isinstance(each, Tensor) for each in arguments)
    ctx.others = tuple(each for each in arguments if not isinstance(each, Tensor))
    ctx.save_for_backward(*(each for each in arguments if isinstance(each, Tensor)))
    ctx.set_materialize_grads(False)


def saved_arguments(ctx: Any) -> tuple[Any, ...]:
    """The flat list that `save_for_backward` kept."""
    tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
    return tuple(next(tensors if is_tensor else others) for is_tensor in ctx.is_tensor)


def gradients_for(arguments: type[tuple[Any, ...]], **gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients by the names of arguments, as a flat list."""
    return tuple(gradients.get(name) for name in arguments._fields)  # type: ignore[attr-defined]


def wanted_products(ctx: Any) -> tuple[bool, bool]:
    """Whether the image and the text features, the first two arguments, get a gradient; the scale's comes with either."""
    wants_image, wants_text = ctx.needs_input_grad[:2]
    return wants_image or not wants_text, wants_text


def refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "otter_losses has no second derivatives: its gradients are analytic, and differentiating them again was asked for. "
        "Call backward without create_graph, or use the functions of otter_losses.ops.reference, which autograd differentiates."
    )
