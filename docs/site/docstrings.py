"""A griffe extension for the annotations and docstrings of this code."""

import ast
import re

import griffe

ROLE = re.compile(r":(?:mod|class|func|meth|data):`([\w.]+)`")


def _shape(annotation: ast.expr | None) -> bool:
    """Whether it has a jaxtyping shape. griffe would parse "b *d" as a Python product."""
    return annotation is not None and any(
        isinstance(node, ast.Constant) and isinstance(node.value, str)
        for node in ast.walk(annotation)
    )


def _linked(role: re.Match) -> str:
    name = role[1]
    return f"<autoref identifier='{name}' optional><code>{name}</code></autoref>"


class Docstrings(griffe.Extension):
    def on_function_instance(self, *, node, func, agent, **kwargs):
        if not isinstance(node, ast.FunctionDef):
            return
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in every:
            if _shape(argument.annotation):
                func.parameters[argument.arg].annotation = ast.unparse(argument.annotation)
        if _shape(node.returns):
            func.returns = ast.unparse(node.returns)

    def on_attribute_instance(self, *, node, attr, agent, **kwargs):
        if isinstance(node, ast.AnnAssign) and _shape(node.annotation):
            attr.annotation = ast.unparse(node.annotation)

    def on_object(self, *, obj, loader, **kwargs):
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_linked, obj.docstring.value)
