"""What is wrong with labelled pairs, before a model is trained on them. Start with `linter.py`.

    linter.lint_tables -> Report               all checks; measure_by: difficulty and lengths by an encoder
    table_checks.py                            what the table alone shows: contradictions, copies, overlap, balance, ...
    score_checks.py                            what scores show: shortcuts, hardness by phase, suspect labels
    expected.py                                which findings are expected of pairs that build-pairs made
    limits.py                                  from where on each finding is a warning, or serious, and why there
    findings.Finding, Part                     what a check returns, what it looks at
    doubtful.write_doubtful                    the pairs whose labels a model doubts, for `trainer label`
    show.print_report, command.py              tables in the terminal; the options of `trainer lint`

A check is a function of a `Part` that returns findings; `linter.lint_tables` lists them.
"""
