"""Pages for people: report.html of one run, comparison.html of several. Start with `run_page.py`.

run_page.write_report(folder)              the page of a finished run
comparison.write_comparison(folders, path) several runs side by side
record.read_run -> Record                  the files of a run, checked
plots.py                                   the pictures (matplotlib)
templates.page                             HTML from titles, tables and pictures (jinja2, all text escaped)
command.py                                 the options of `trainer report`
"""
