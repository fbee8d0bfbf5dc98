"""Sixty files of rows that cannot be trained on, made by code, and what the command says of each.

    python nbs/studies/faults_rows.py

prints a line for each: its name, the exit code, the last line that was said. Right is exit code 1
and a sentence that names the file; `outcomes` gives the same to a page.
"""
import contextlib
import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path

GOOD = [dict(instruction=f'Say {i}.', input='', output=str(i)) for i in range(12)]


def lines(rows): return '\n'.join(map(json.dumps, rows))


def with_row(row, n=7):
    "Good rows, but for one."
    return lines([*GOOD[:n], row, *GOOD[n + 1:]])


def with_line(text, n=7):
    "Good rows, but for one line of text."
    each = lines(GOOD).split('\n')
    return '\n'.join([*each[:n], text, *each[n + 1:]])


def with_further(text):
    "Rows with a further field `x`, which is this JSON in one of them."
    row = '{"instruction": "a", "input": "", "output": "b", "x": %s}' % text
    each = [json.dumps(row | dict(x=None)) for row in GOOD]
    return '\n'.join([*each[:7], row, *each[8:]])


def changed(**fields): return with_row(GOOD[7] | fields)


def further(x, there):
    "Rows with a further field `x`, of another kind in one of them."
    return lines([row | dict(x=x if i == 7 else there) for i, row in enumerate(GOOD)])


def numbered(row_id):
    "Rows that bring a number of their own, and one that brings another thing."
    return lines([row | dict(row_id=row_id if i == 7 else i) for i, row in enumerate(GOOD)])


def zipped():
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as z: z.writestr('rows.jsonl', lines(GOOD))
    return data.getvalue()


def nested(n): return '[' * n + ']' * n


def spoken(name): return name.replace('_', ' ')


FIELDS = {f'{field} is {spoken(name)}': changed(**{field: value})
          for field in ('instruction', 'output')
          for name, value in dict(null=None, a_number=3, a_list=['a'], an_object=dict(a=1),
                                  true=True, empty='', blank=' \n\t').items()}
WITHOUT = {f'without {field}': with_row({k: v for k, v in GOOD[7].items() if k != field})
           for field in ('instruction', 'output')}
IDS = {f'row_id is {spoken(name)}': numbered(value) for name, value in
       dict(a_text='a7', a_float=7.5, null=None, true=True, beyond_64_bits=2**63).items()}
ROWS = {
    'input is a number': changed(input=3),
    'input is a list': changed(input=['a']),
    'half a character in the answer': changed(output='a\ud800'),
    'half a character in a further field': further('a\udc00', 'a'),
    'a field that the others lack': changed(score=1),
    'a field that only the first has': lines([GOOD[0] | dict(score=1), *GOOD[1:]]),
    'misspelt field': with_row(dict(instruction='a', ouput='b')),
    'an instruction twice': with_line('{"instruction": "a", "instruction": "b", "output": "c"}'),
    'a nested name twice': with_further('{"a": 1, "a": 2}'),
    'row_id twice': numbered(3),
    'a number of 71 bits': further(2**70, 1),
    'a number of 5,000 digits': with_further('9'*5000),
    'a text among numbers': further('lots', 1),
    'true among numbers': further(True, 1),
    'true among floats': further(True, .5),
    'a list among texts': further(['a'], 'a'),
    'a large number among floats': further(2**53 + 1, .5),
    'nested 100,000 deep': with_line('{"instruction": "a", "output": %s}' % nested(100_000)),
    'nested 100 deep': with_further(nested(100)),
    'a row is a number': with_line('7'),
    'a row is a text': with_line('"a"'),
    'a row is a list': with_line('["a", "b"]'),
}
FILES = {
    'empty': '',
    'only blanks': ' \n\n\t\n',
    'an empty list': '[]',
    'cut short': lines(GOOD)[:-9],
    'a list cut short': json.dumps(GOOD)[:-20],
    'a comma too many': json.dumps(GOOD)[:-1] + ',]',
    'text after the list': json.dumps(GOOD) + ' and more',
    'single quotes': lines(GOOD).replace('"', "'"),
    'a table with commas': 'instruction,output\na,b\nc,d\n',
    'rows under two keys': json.dumps(dict(train=GOOD, test=GOOD), indent=2),
    'rows under two keys, on one line': json.dumps(dict(version=1, a=GOOD, b=GOOD)),
    'columns instead of rows': json.dumps(dict(instruction=['a'], output=['b'])),
    'rows of several lines': '\n'.join(json.dumps(row, indent=1) for row in GOOD),
    'UTF-16': lines(GOOD).encode('utf-16'),
    'Latin-1': lines(GOOD[:7]).encode() + b'\n{"instruction": "caf\xe9", "output": "b"}',
    'gzip': gzip.compress(lines(GOOD).encode()),
    'zip': zipped(),
}
MALFORMED = FIELDS | WITHOUT | IDS | ROWS | FILES   # name -> text or bytes


def outcomes(names=None):
    "(name, exit code, last line said) of each; a traceback is the exception's own name."
    from alpaca_ft.finetune import main
    for name in MALFORMED if names is None else names:
        data = MALFORMED[name]
        with tempfile.TemporaryDirectory() as folder:
            file, said = Path(folder)/'mine.jsonl', io.StringIO()
            file.write_bytes(data if isinstance(data, bytes) else data.encode())
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                argv = ['--rows', str(file), '--n_eval', '2', '--dry_run', '--out', f'{folder}/run']
                try: code = main(argv)
                except SystemExit as e: code = e.code
                except Exception as e: code = type(e).__name__
        yield name, code, said.getvalue().replace(folder, '...').strip().split('\n')[-1]


if __name__ == '__main__':
    for outcome in outcomes(): print(*outcome, sep=' | ', flush=True)
