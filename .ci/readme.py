"""Make README.md from nbs/index.ipynb, without its hidden cells and directives.

    python .ci/readme.py            write README.md
    python .ci/readme.py --check    write nothing; show the difference, exit 1 if there is one
"""
import difflib, itertools, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import extract_directives

root = Path(__file__).resolve().parent.parent
source, target = root/'nbs'/'index.ipynb', root/'README.md'
hidden = {'hide', 'default_exp', 'export', 'exporti', 'exports'}
link = re.compile(r'(\]\(|(?:src|href)=")(?!\w+:|[#/])([^)"\s]+)')


def is_directive(line): return line.startswith('#|')  # one with a colon, left for Quarto


def visible(nb):
    "The notebook's cells that a reader sees, without the directives."
    for c in nb.cells:
        if c.cell_type != 'code':
            yield c
            continue
        found = extract_directives(c)  # and take them out of the cell
        if hidden & found.keys() or found.get('include:') == ['false']: continue
        if any(o.get('data', {}).keys() & {'image/png', 'image/svg+xml'} for o in c.outputs):
            sys.exit(f'{source.name}: a cell prints a picture, which README.md cannot show: '
                     'save it in nbs/images/ and link to it')
        lines = [] if found.get('echo:') == ['false'] else c.source.splitlines(True)
        c.source = ''.join(itertools.dropwhile(is_directive, lines))
        if c.source or c.outputs: yield c


def from_root(match):
    "A link as it must be in README.md: relative to the repository's root, not to nbs/."
    path, _, anchor = match[2].partition('#')
    path = (source.parent/path).resolve().relative_to(root).as_posix()
    return match[1] + path + (f'#{anchor}' if anchor else '')


def readme():
    "The text of README.md."
    nb = nbformat.read(source, 4)
    nb.metadata['language_info'] = dict(name='python')  # for the fences of code
    nb.cells = list(visible(nb))
    text = MarkdownExporter().from_notebook_node(nb)[0]
    text = re.sub(r'^```python\n*```$', '', text, flags=re.M)  # left of a cell with echo: false
    text = re.sub(r'\n{3,}', '\n\n', link.sub(from_root, text)).strip()
    return f'<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook -->\n\n{text}\n'


def dead_links(text):
    "The files that `text` links to and that are not there."
    paths = {m[2].partition('#')[0] for m in link.finditer(text)}
    return sorted(p for p in paths if not (root/p).exists())


if __name__ == '__main__':
    new, old = readme(), target.read_text('utf-8') if target.exists() else ''
    if sys.argv[1:] == ['--check']:
        diff = difflib.unified_diff(old.splitlines(), new.splitlines(), 'README.md',
                                    'what nbs/index.ipynb gives', lineterm='')
        print('\n'.join(diff) or 'README.md is what nbs/index.ipynb gives')
        if old != new: sys.exit('README.md is another: run python .ci/readme.py')
    else: target.write_text(new, 'utf-8', newline='\n')
    if dead := dead_links(new):
        sys.exit(f"nbs/index.ipynb links to what is not there: {', '.join(dead)}")
