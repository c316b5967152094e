"""``emu-jax claims CLAIMS.toml RECORD.json ...``: what comparisons say of claims made before them.

``RECORD.json`` are what ``emu-jax compare`` writes beside its reports; several must be of the same
prompts. docs/evaluation.md has the form of the file of claims.
"""

from collections.abc import Sequence

from etils import epath

from emu_jax.assembly.arguments import Parser, path
from emu_jax.cli.arguments import add_out


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax claims", description=__doc__)
    parser.add_argument("claims", type=path, help="a TOML file")
    parser.add_argument("records", nargs="+", type=path, help="compare.json files")
    add_out(parser, "runs/claims", "folder for the report")
    arguments = parser.parse_args(argv)

    from emu_jax.checkpoint.foreign import read_json
    from emu_jax.evaluation.claims import Claims
    from emu_jax.evaluation.decisions import Comparison, decide, gaps, overview
    from emu_jax.evaluation.report import write_report
    from emu_jax.evaluation.verdicts import report

    claims = Claims.read(arguments.claims)
    found = Comparison([read_json(epath.Path(name)) for name in arguments.records])
    tables = [(one.figure, overview(one, claims, found)) for one in claims.tables]
    sections, table = report(*decide(claims, found), gaps(claims, found), tables)
    index = write_report(epath.Path(arguments.out) / "index.html", claims.title, sections)
    (index.parent / "claims.md").write_text(table)
    print(f"{table}report: {index}")
    return 0
