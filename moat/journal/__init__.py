"""What happened, in files that are only added to: plain JSON lines, and the signed journal of a run.

`lines` has the plain files (`network.jsonl`). The journal proper is a hash chain of signed entries:
`entry` is its format, `events` its vocabulary, `key` the key of this installation, `writer` appends,
`ledger` remembers every journal there ever was, `verify` judges (with `chain` and `judged_ledger`),
`keeping` does what a run needs of all.
docs/audit.md specifies the format and says what is proven and what is not.
"""

from moat.journal.lines import LineWriter, parse_line, read_lines
from moat.journal.writer import Journal, remedy

__all__ = ["Journal", "LineWriter", "parse_line", "read_lines", "remedy"]
