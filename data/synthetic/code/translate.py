"""Python into other languages by rule, for the part of Python that `programs` writes: what stands in for a model.

Where languages differ is where translations go wrong: division and remainder of negative numbers, texts beside numbers,
lists that begin at 1, minus zero.
"""

import ast
from collections.abc import Callable
from typing import ClassVar

from isthmus.data.synthetic.code.programs import HEADER


def translate(source: str, language: str) -> str:
    """Return the program in another language.

    Raises:
        ValueError: it uses something that is not known here.
    """
    return _DIALECTS[language](source).program


def _python_header() -> str:
    return ast.dump(ast.parse(HEADER).body[1])


class _Dialect:
    """What the languages share. Blocks end in `}` and statements in `;` unless a language says otherwise."""

    header = ""
    declare, sigil, end, block, close = "", "", ";", " {", "}"
    operators: ClassVar[dict[str, str]] = {"And": "&&", "Or": "||", "Not": "!", "NotEq": "!=", "Concat": "+"}

    def __init__(self, source: str) -> None:
        self._lines: list[str] = []
        self._lists, self._texts = {"numbers"}, set[str]()
        body = ast.parse(source).body
        self._block(body, 0, {"numbers"})
        self.program = self.header + "\n".join(self._lines) + "\n"

    # ---- statements

    def _block(self, body: list[ast.stmt], depth: int, declared: set[str]) -> None:
        for statement in body:
            self._statement(statement, depth, declared)

    def _statement(self, node: ast.stmt, depth: int, declared: set[str]) -> None:
        if isinstance(node, ast.Import) or ast.dump(node) == _python_header():
            return
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                if isinstance(value, ast.List):
                    self._lists.add(name)
                elif self._is_text(value):
                    self._texts.add(name)
                declare = "" if name in declared else self.declare
                declared.add(name)
                self._put(depth, f"{declare}{self._variable(name)} = {self._value(value)}{self.end}")
            case ast.AugAssign(target=ast.Name(id=name), op=operator, value=value):
                combined = ast.BinOp(ast.Name(name), operator, value)
                self._put(depth, f"{self._variable(name)} = {self._value(combined)}{self.end}")
            case ast.If():
                self._if(node, depth, declared, "if")
            case ast.While(test=test, body=body):
                self._put(depth, self.opens("while", self._value(test)))
                self._inner(body, depth, declared)
            case ast.For(target=ast.Name(id=name), iter=ast.Call(func=ast.Name(id="range"), args=bounds), body=body):
                first, last = bounds if len(bounds) == 2 else (ast.Constant(0), *bounds)
                self._put(depth, self.counts(name, self._value(first), last))
                self._inner(body, depth, declared | {name})
            case ast.For(target=ast.Name(id=name), iter=ast.Name(id=items), body=body):
                self._put(depth, self.visits(name, items))
                self._inner(body, depth, declared | {name})
            case ast.FunctionDef(name=name, args=arguments, body=body):
                names = [argument.arg for argument in arguments.args]
                self._put(depth, self.defines(name, names))
                self._inner(body, depth, set(names), functions=True)
            case ast.Return(value=ast.expr() as value):
                self._put(depth, f"return {self._value(value)}{self.end}")
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=values)):
                self._put(depth, self.prints([self._value(value) for value in values]))
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[value])):
                self._put(depth, self.appends(name, self._value(value)))
            case _:
                raise ValueError(f"cannot translate {ast.unparse(node)}")

    def _if(self, node: ast.If, depth: int, declared: set[str], word: str) -> None:
        self._put(depth, self.opens(word, self._value(node.test)))
        self._block(node.body, depth + 1, set(declared))
        match node.orelse:
            case []:
                self._put(depth, self.close)
            case [ast.If() as inner]:
                self._if(inner, depth, declared, self.otherwise_if)
            case others:
                self._put(depth, self.otherwise)
                self._inner(others, depth, declared)

    otherwise, otherwise_if = "} else {", "} else if"

    def _inner(self, body: list[ast.stmt], depth: int, declared: set[str], functions: bool = False) -> None:
        self._block(body, depth + 1, set(declared))
        self._put(depth, self.close)
        if functions:
            self._put(depth, "")

    def _put(self, depth: int, line: str) -> None:
        self._lines.append("    " * depth + line if line else "")

    # ---- values

    def _value(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return f'"{text}"'
            case ast.Constant(value=int(number)):
                return str(number)
            case ast.Name(id=name):
                return self._variable(name)
            case ast.List(elts=[]):
                return self.empty
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"-{self._value(operand)}"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return f"{self.operators['Not']}({self._value(operand)})"
            case ast.BoolOp(op=operator, values=values):
                word = f" {self.operators[type(operator).__name__]} "
                return word.join(self._value(value) for value in values)
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                signs = {"Eq": self.equals, "Lt": "<", "Gt": ">", "LtE": "<=", "GtE": ">=", "NotEq": self.differs}
                return f"{self._value(left)} {signs[type(operator).__name__]} {self._value(right)}"
            case ast.BinOp(left=left, op=operator, right=right):
                return self._calculation(left, operator, right)
            case ast.Subscript(value=ast.Name(id=name), slice=place):
                return self.entry(name, place)
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]):
                return self.length(name)
            case ast.Call(func=ast.Name(id="abs"), args=[value]):
                return f"{self.absolute}({self._value(value)})"
            case ast.Call(func=ast.Name(id=name), args=values):
                return f"{name}({', '.join(self._value(value) for value in values)})"
        raise ValueError(f"cannot translate {ast.unparse(node)}")

    equals, differs, empty, absolute = "==", "!=", "[]", "abs"

    def _calculation(self, left: ast.expr, operator: ast.operator, right: ast.expr) -> str:
        one, other = (
            f"({self._value(side)})" if isinstance(side, ast.BinOp) else self._value(side) for side in (left, right)
        )
        match operator:
            case ast.FloorDiv():
                return self.divides(one, other)
            case ast.Mod():
                return self.remains(one, other)
            case ast.Add() if self._is_text(left):
                return f"{one} {self.operators['Concat']} {other}"
            case ast.Add() | ast.Sub() | ast.Mult():
                return f"{one} {({'Add': '+', 'Sub': '-', 'Mult': '*'})[type(operator).__name__]} {other}"
        raise ValueError(f"cannot translate {type(operator).__name__}")

    def _is_text(self, node: ast.expr) -> bool:
        return (isinstance(node, ast.Constant) and isinstance(node.value, str)) or (
            isinstance(node, ast.Name) and node.id in self._texts
        )

    def _variable(self, name: str) -> str:
        return f"{self.sigil}{name}"

    # ---- what languages say in their own way

    def opens(self, word: str, condition: str) -> str:
        return f"{word} ({condition}){self.block}"

    def counts(self, name: str, first: str, last: ast.expr) -> str:
        variable = self._variable(name)
        return f"for ({self.declare}{variable} = {first}; {variable} < {self._value(last)}; {variable}++) {{"

    def visits(self, name: str, items: str) -> str:
        raise NotImplementedError

    def defines(self, name: str, arguments: list[str]) -> str:
        return f"function {name}({', '.join(self._variable(argument) for argument in arguments)}) {{"

    def prints(self, values: list[str]) -> str:
        raise NotImplementedError

    def appends(self, name: str, value: str) -> str:
        raise NotImplementedError

    def entry(self, name: str, place: ast.expr) -> str:
        return f"{self._variable(name)}[{self._value(place)}]"

    def length(self, name: str) -> str:
        raise NotImplementedError

    def divides(self, one: str, other: str) -> str:
        raise NotImplementedError

    def remains(self, one: str, other: str) -> str:
        return f"(({one} % {other}) + {other}) % {other}"


class _JavaScript(_Dialect):
    header = (
        'const numbers = require("fs").readFileSync(0, "utf8").split(/\\s+/).filter((word) => word).map(Number);\n\n'
    )
    declare, equals, differs, absolute = "let ", "===", "!==", "Math.abs"

    def visits(self, name: str, items: str) -> str:
        return f"for (const {name} of {items}) {{"

    def prints(self, values: list[str]) -> str:
        return f'console.log([{", ".join(values)}].join(" "));'  # a number alone would be printed as -0

    def appends(self, name: str, value: str) -> str:
        return f"{name}.push({value});"

    def length(self, name: str) -> str:
        return f"{name}.length"

    def divides(self, one: str, other: str) -> str:
        return f"Math.floor({one} / {other})"


class _Perl(_Dialect):
    header = (
        "use strict;\nuse warnings;\nuse POSIX qw(floor);\n\n"
        "my @numbers = map { int } split ' ', join('', <STDIN>);\n\n"
    )
    declare, sigil, empty = "my ", "$", "()"
    otherwise_if = "} elsif"
    operators: ClassVar[dict[str, str]] = {"And": "&&", "Or": "||", "Not": "!", "Concat": "."}

    def _variable(self, name: str) -> str:
        return f"@{name}" if name in self._lists else f"${name}"

    def visits(self, name: str, items: str) -> str:
        return f"for my ${name} (@{items}) {{"

    def defines(self, name: str, arguments: list[str]) -> str:
        return f"sub {name} {{\n    my ({', '.join(f'${argument}' for argument in arguments)}) = @_;"

    def prints(self, values: list[str]) -> str:
        return f"print join(' ', {', '.join(values)}), \"\\n\";"

    def appends(self, name: str, value: str) -> str:
        return f"push @{name}, {value};"

    def entry(self, name: str, place: ast.expr) -> str:
        return f"${name}[{self._value(place)}]"

    def length(self, name: str) -> str:
        return f"scalar(@{name})"

    def divides(self, one: str, other: str) -> str:
        return f"floor({one} / {other})"

    def remains(self, one: str, other: str) -> str:
        return f"{one} % {other}"  # has the sign of the divisor, as in Python


class _Php(_Dialect):
    header = (
        "<?php\n$numbers = array_map('intval', preg_split('/\\s+/', stream_get_contents(STDIN), -1, "
        "PREG_SPLIT_NO_EMPTY));\n\n"
    )
    sigil, equals, differs = "$", "===", "!=="
    otherwise_if = "} elseif"
    operators: ClassVar[dict[str, str]] = {"And": "&&", "Or": "||", "Not": "!", "Concat": "."}

    def visits(self, name: str, items: str) -> str:
        return f"foreach (${items} as ${name}) {{"

    def prints(self, values: list[str]) -> str:
        return f"echo implode(' ', [{', '.join(values)}]), \"\\n\";"

    def appends(self, name: str, value: str) -> str:
        return f"${name}[] = {value};"

    def length(self, name: str) -> str:
        return f"count(${name})"

    def divides(self, one: str, other: str) -> str:
        return f"(int) floor(({one}) / {other})"


class _Lua(_Dialect):
    header = (
        'local numbers = {}\nfor word in io.read("a"):gmatch("%S+") do\n'
        "    numbers[#numbers + 1] = math.tointeger(tonumber(word))\nend\n\n"
    )
    declare, end, close, differs, empty, absolute = "local ", "", "end", "~=", "{}", "math.abs"
    otherwise, otherwise_if = "else", "elseif"
    operators: ClassVar[dict[str, str]] = {"And": "and", "Or": "or", "Not": "not ", "Concat": ".."}

    def opens(self, word: str, condition: str) -> str:
        return f"{word} {condition} {'do' if word == 'while' else 'then'}"

    def counts(self, name: str, first: str, last: ast.expr) -> str:
        return f"for {name} = {first}, {self._value(last)} - 1 do"

    def visits(self, name: str, items: str) -> str:
        return f"for _, {name} in ipairs({items}) do"

    def defines(self, name: str, arguments: list[str]) -> str:
        return f"local function {name}({', '.join(arguments)})"

    def prints(self, values: list[str]) -> str:
        safe = [f"({value})" if value.startswith("-") else value for value in values]
        return "print(" + ' .. " " .. '.join(safe) + ")"

    def appends(self, name: str, value: str) -> str:
        return f"{name}[#{name} + 1] = {value}"

    def entry(self, name: str, place: ast.expr) -> str:
        return f"{name}[{self._value(place)} + 1]"  # lists begin at 1

    def length(self, name: str) -> str:
        return f"#{name}"

    def divides(self, one: str, other: str) -> str:
        return f"{one} // {other}"

    def remains(self, one: str, other: str) -> str:
        return f"{one} % {other}"


_DIALECTS: dict[str, Callable[[str], _Dialect]] = {"javascript": _JavaScript, "perl": _Perl, "php": _Php, "lua": _Lua}
