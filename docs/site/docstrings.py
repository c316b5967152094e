"""A griffe extension for the annotations and docstrings of this code."""

import ast
import re

import griffe

ROLE = re.compile(r":(?:mod|class|func|meth|data):`([\w.]+)`")


def _shape(annotation: ast.expr | None) -> bool:
    """Whether it has a jaxtyping shape. griffe would parse "b *d" as a Python product."""
    return annotation is not None and any(
        isinstance(word, ast.Constant) and isinstance(word.value, str)
        for node in ast.walk(annotation)
        if isinstance(node, ast.Subscript)
        for word in ast.walk(node.slice)
    )


def _written(annotation: ast.expr) -> str:
    return ast.unparse(annotation).replace("'", '"')


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
                func.parameters[argument.arg].annotation = _written(argument.annotation)
        if _shape(node.returns):
            func.returns = _written(node.returns)

    def on_attribute_instance(self, *, node, attr, agent, **kwargs):
        if isinstance(node, ast.AnnAssign) and _shape(node.annotation):
            attr.annotation = _written(node.annotation)

    def on_class_members(self, *, node, cls, agent, **kwargs):
        """Fields of a dataclass are in its signature, and special methods are known."""
        dataclass = any("dataclass" in str(decorator.value) for decorator in cls.decorators)
        for name, member in cls.members.items():
            field = dataclass and member.is_attribute and not member.docstring
            if field or name.startswith("__"):
                member.public = False

    def on_object(self, *, obj, loader, **kwargs):
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_linked, obj.docstring.value)
