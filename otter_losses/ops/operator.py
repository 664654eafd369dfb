"""What custom operators share: a flat list of arguments that a NamedTuple names, from the schema to the backward.

torch.library calls an operator with one flat list, and shows it again to the fake and to the backward. Each list is a
NamedTuple here: its fields are the schema, and whoever gets the list unpacks it by them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from otter_losses.ops.domains import has_numbers

Fields = TypeVar("Fields", bound=tuple[Any, ...])

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


def unflatten(fields: type[Fields], flat: Iterator[Any]) -> Fields:
    """The NamedTuple of a flat list that `schema` describes, those among its fields filled likewise."""
    kinds = fields.__annotations__.values()
    return fields(*[unflatten(kind, flat) if hasattr(kind, "_fields") else next(flat) for kind in kinds])


def custom_operator(name: str, schema: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Declare a function an operator that mutates nothing; `call` reaches the function itself."""

    def declare(run: Callable[..., Any]) -> CustomOpDef:
        definition = torch.library.custom_op(f"otter_losses::{name}", run, mutates_args=(), schema=schema)
        definition.run = run  # type: ignore[attr-defined]
        return definition

    return declare


def call(operator: Any, *flat: Any) -> Any:
    """What an operator gives; without torch's dispatcher where nobody looks at operators or differentiates.

    The dispatcher's share of a call grows with the square of the number of arguments.
    """
    return operator.run(*flat) if not torch.is_grad_enabled() and _runs_plainly(flat) else operator(*flat)


def _runs_plainly(flat: Sequence[Any]) -> bool:
    """Whether there are numbers, and nobody traces."""
    first = next(each for each in flat if isinstance(each, Tensor))
    return has_numbers(first) and not is_in_torch_dispatch_mode()


def make_differentiable(
    forward: Any,
    backward: Any,
    arguments: type[tuple[Any, ...]],
    gradients: type[tuple[Any, ...]],
    results: int = 1,
) -> Callable[..., tuple[Tensor, ...]]:
    """Let autograd call the backward operator for so many of the forward one's first results; return what gives these.

    The backward is given their gradients, None where nothing depends on one of several; the forward's arguments and other
    results; and whether the image and the text features want their gradients. It returns `gradients`, of which each belongs to
    the argument of its name.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        flat = [*inputs, *output[results:]]
        ctx.places = [place for place, each in enumerate(flat) if isinstance(each, Tensor)]
        ctx.save_for_backward(*[flat[place] for place in ctx.places])
        ctx.flat = [None if isinstance(each, Tensor) else each for each in flat]
        ctx.set_materialize_grads(False)

    names: tuple[str, ...] = arguments._fields  # type: ignore[attr-defined]
    places = [names.index(name) for name in gradients._fields]  # type: ignore[attr-defined]
    image, text = names.index("image_features"), names.index("text_features")

    def differentiate(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * len(names)
        if all(gradient is None for gradient in incoming[:results]):
            return tuple(found)
        flat = ctx.flat.copy()
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            flat[place] = tensor
        wants_text = ctx.needs_input_grad[text]
        wants_image = ctx.needs_input_grad[image] or not wants_text  # the scale's gradient needs one of the products
        computed = call(backward, *incoming[:results], *flat, wants_image, wants_text)
        for place, gradient in zip(places, computed, strict=True):
            found[place] = gradient
        if not wants_image:
            found[image] = None
        if not wants_text:
            found[text] = None
        return tuple(found)

    backward.register_autograd(refuse_second_derivative)
    return register_gradient(forward, setup_context, differentiate, results)


def register_gradient(
    forward: Any,
    setup_context: Callable[..., None],
    differentiate: Callable[..., tuple[Tensor | None, ...]],
    results: int = 1,
) -> Callable[..., tuple[Tensor, ...]]:
    """Register an operator's autograd, and return what calls it for its first results: directly where nobody traces."""
    forward.register_autograd(differentiate, setup_context=setup_context)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
            output: tuple[Tensor, ...] = forward.run(*flat)
            setup_context(ctx, flat, output)
            return output  # all of it: what is saved must be known to depend on the inputs, or a second derivative would be zero

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            return differentiate(ctx, *gradients)

    def run(*flat: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = Direct.apply(*flat) if _runs_plainly(flat) else forward(*flat)  # type: ignore[no-untyped-call]
        return found[:results]

    return run


def refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    """What a backward operator registers for its own."""
    raise RuntimeError(
        "otter_losses has no second derivatives: its gradients are analytic, and differentiating them again was asked for. "
        "Call backward without create_graph, or use the functions of otter_losses.ops.reference, which autograd differentiates."
    )
