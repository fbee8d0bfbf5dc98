"""Build the site in _site/html: the notebooks as they are stored, and a page for each module.

    python site/build.py               build, check every link, anchor and picture within the site
    python site/build.py linkcheck     ask for every address outside it (needs the network)

Needs the environment of `.[dev,site]`.
"""
import ast, configparser, html, importlib, inspect, itertools, pkgutil, re, shutil, subprocess, sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
from fastcore.docments import docments
from nbdev.process import extract_directives

here = Path(__file__).resolve().parent
root, nbs = here.parent, here.parent/'nbs'
staged, built = root/'_site'/'source', root/'_site'/'html'
ini = configparser.ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
blob = f"{cfg['git_url']}/blob/{cfg['branch']}"
# The groups of pages, and the folder of each: what to learn from, then the floors from the top
groups = {'Lessons': '.', 'Commands': 'command', 'Results': 'results', 'The small world': 'world',
          'Tools': 'tools', 'Studies': 'studies', 'Solutions': 'solutions'}
link = re.compile(r'(\]\()(?!\w+:|#)([^)\s]+)')
view, state = (f'application/vnd.jupyter.widget-{kind}+json' for kind in ('view', 'state'))


# A notebook, as a reader sees it
def outward(text, folder):
    "Links in `text` to files that are no page of the site, turned into addresses on GitHub."
    def change(m):
        path, _, anchor = m[2].partition('#')
        target = (folder/path).resolve()
        if target.is_relative_to(nbs) and target.suffix in ('.ipynb', '.png', '.svg'): return m[0]
        address = f'{m[1]}{blob}/{target.relative_to(root).as_posix()}'
        return f'{address}#{anchor}' if anchor else address
    return link.sub(change, text)


def control(s):
    "A widget that holds one value, as an HTML control that cannot be moved."
    kind, value, name = s['_model_name'], s.get('value'), html.escape(s.get('description') or '')
    text = lambda x: html.escape(str(x))
    if kind == 'HTMLModel': return value
    if kind == 'LabelModel': return f'<p>{text(value)}</p>'
    if kind == 'ButtonModel': return f"<button disabled>{name or text(s.get('icon'))}</button>"
    if kind == 'CheckboxModel':
        return f"<label><input type=checkbox disabled {'checked' if value else ''}> {name}</label>"
    low, high, at = s.get('min'), s.get('max'), value
    if '_options_labels' in s:
        labels, at = s['_options_labels'] or [''], s['index']
        low, high, value = 0, len(labels) - 1, labels[at or 0]
    if 'Slider' not in kind: return f'<label>{name} <input disabled value="{text(value)}"></label>'
    slider = f'<input type=range disabled step=any min={low} max={high} value={at}>'
    if isinstance(value, float): value = round(value, 4)
    return f'<label>{name} {slider}</label> <output>{text(value)}</output>'


def shown(output, alt):
    "An output inside a widget, as HTML."
    data = output.get('data', {})
    if 'image/png' in data:
        alt = output.get('metadata', {}).get('image/png', {}).get('alt', alt)
        source = f"data:image/png;base64,{data['image/png'].strip()}"
        return f'<img alt="{html.escape(alt)}" src="{source}">'
    text = output.get('text') or data.get('text/plain', '')
    return data.get('text/html') or f'<pre>{html.escape(text)}</pre>'


def widget(models, id):
    "A widget's stored state as HTML that needs no script: its controls, and what they have drawn."
    s = models[id.removeprefix('IPY_MODEL_')]['state']
    if 'children' in s:
        return '<div>' + ''.join(widget(models, c) for c in s['children']) + '</div>'
    if 'outputs' in s:
        alt = 'What the controls above draw, as they are set here'
        return ''.join(shown(o, alt) for o in s['outputs'])
    return f'<div>{control(s)}</div>'


def picture_text(cell, where):
    "Hand the alt text of a cell's pictures to the page; a picture without one is an error."
    drawn = [o for o in cell.outputs if 'image/png' in o.get('data', {})]
    alts = {o.metadata.get('image/png', {}).get('alt') for o in drawn}
    if len(alts) > 1 or not all(alts):
        raise ValueError(f'{where}: pictures need one alt text a cell, found {alts}')
    if alts: cell.metadata['mystnb'] = {'image': {'alt': alts.pop()}}


def still(models, id, where):
    "A widget as it stands, and the words that it can be moved elsewhere."
    if id not in models: raise ValueError(f'{where}: a widget whose state is not stored')
    note = '<p>It can be moved where the notebook runs.</p>'
    return f'<div class="widget">{widget(models, id)}{note}</div>'


def code_cell(cell, models, where):
    "A code cell without directives, its widgets as they stand; None for one that is hidden."
    if 'hide' in extract_directives(cell):  # it takes out those without a colon
        drawn = any('image/png' in o.get('data', {}) for o in cell.outputs)
        if drawn: raise ValueError(f'{where}: a picture that no reader sees (#| hide)')
        return
    lines = itertools.dropwhile(lambda line: line.startswith('#|'), cell.source.splitlines(True))
    cell.source = ''.join(lines).strip('\n')
    for o in cell.outputs:
        data = o.get('data', {})
        if view in data: o.data = {'text/html': still(models, data[view]['model_id'], where)}
        if text := data.get('text/markdown'):  # Sphinx resolves no links in what a cell prints
            data['text/markdown'] = re.sub(r'(\]\((?!\w+:)[^)]+)\.ipynb', r'\1.html', text)
    picture_text(cell, where)
    if cell.metadata.get('hide_input'): cell.metadata['tags'] = ['hide-input']  # folded
    return cell if cell.source or cell.outputs else None


def start(path):
    "How to run a notebook oneself: the cell under its first screen."
    place = path.relative_to(root)
    colab = f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}"
    return nbformat.v4.new_markdown_cell(textwrap.dedent(f"""\
        [Open in Colab]({colab}/blob/{cfg['branch']}/{place.as_posix()})
        · [on GitHub]({blob}/{place.as_posix()})

        <details><summary>In Colab, run this in a cell of its own first</summary>

        ```
        !git clone -q {cfg['git_url']}
        %cd {cfg['repo']}/{place.parent.as_posix()}
        %pip install -q {'../' * (len(place.parts) - 1)}
        ```

        The package is not on a package index yet; this takes it, with the files that the lessons
        read, from GitHub. Restart the session if Colab asks for it, and run the second line again.
        </details>"""))


def stage(path, extra=()):
    "Write a notebook to where Sphinx reads it, as a reader sees it; `extra` cells go to the end."
    nb, name = nbformat.read(path, 4), path.relative_to(root).as_posix()
    models = nb.metadata.get('widgets', {}).get(state, {}).get('state', {})
    cells = []
    for i, c in enumerate(nb.cells):
        if c.cell_type == 'code': c = code_cell(c, models, f'{name}, cell {i}')
        else: c.source = outward(c.source, path.parent)
        if c: cells.append(c)
    if path.stem != 'index': cells.insert(1, start(path))
    nb.cells = cells + [nbformat.v4.new_markdown_cell(x) for x in extra]
    nb.metadata.pop('widgets', None)
    nbformat.write(nb, made(staged/path.relative_to(nbs)))


def made(path):
    "`path`, its folder there."
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# A module's page
def plain(text):
    "A docstring or comment as Markdown that shows its < and * as they are."
    return re.sub(r'`[^`]*`|[<*]', lambda m: m[0] if m[0][0] == '`' else '\\' + m[0], text or '')


def parameters(thing):
    "The table of a function's parameters, from the comments beside them."
    rows = []
    for name, about in docments(thing, full=True).items():
        if name == 'self' or not about.docment: continue
        name = '*returns*' if name == 'return' else f'`{name}`'
        text = plain(' '.join(about.docment.split())).replace('||', '\\|\\|')
        rows.append(f'| {name} | {text} |')
    return '\n'.join(['| parameter | what it is |', '|---|---|', *rows]) if rows else ''


def methods(name, thing):
    "The entries of a class's methods that have a docstring."
    named = {k: getattr(thing, k) for k in vars(thing) if k[0] != '_'}
    return [entry(f'{name}.{k}', m, 'method') for k, m in named.items()
            if inspect.isfunction(m) and m.__doc__]


def entry(name, thing, kind='function'):
    "A function, a class with its methods, or a value, as a directive of Sphinx."
    if not callable(thing): return f'````{{py:data}} {name}\n````\n'
    lines, first = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(inspect.unwrap(thing))).resolve().relative_to(root).as_posix()
    source = f'[source]({blob}/{file}#L{first}-L{first + len(lines) - 1})'
    node = ast.parse(textwrap.dedent(''.join(lines))).body[0]
    if inspect.isclass(thing): kind, args, inner = 'class', '', methods(name, thing)
    else:
        args, inner = f'({ast.unparse(node.args)})', []
        args = args.replace('(self, ', '(').replace('(self)', '()')
    fence = '`' * (6 if inner else 5)
    parts = [plain(inspect.getdoc(thing)), parameters(thing), source, *inner]
    body = '\n\n'.join(filter(None, parts))
    return f'{fence}{{py:{kind}}} {name}{args}\n\n{body}\n{fence}\n'


def modules():
    "The names of all modules that notebooks export, without the package's."
    package = importlib.import_module(cfg['lib_path'])
    found = pkgutil.walk_packages(package.__path__, f'{package.__name__}.')
    names = [m.name.partition('.')[2] for m in found if not m.ispkg]
    return [n for n in names if n != '_modidx']


def api_page(name):
    "Write the page of one module: what it exports, in its order. Its place, as Sphinx calls it."
    module = importlib.import_module(f"{cfg['lib_path']}.{name}")
    notebook = re.search(r'File to edit: [./]*nbs/(\S+)\.ipynb', inspect.getsource(module))[1]
    page = f"api/{name.replace('.', '/')}"
    names = [n for n in module.__all__ if n[0] != '_']
    parts = [f'# {name}\n\n> {plain(inspect.getdoc(module))}\n',
             f'Explained and tested in [{notebook}](/{notebook}.ipynb).\n',
             f'```{{py:module}} {module.__name__}\n```\n',
             *(entry(n, getattr(module, n)) for n in names)]
    made(staged/f'{page}.md').write_text('\n'.join(parts), 'utf-8')
    return page


# The whole
def toctree(caption, pages):
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *pages, '```'])


def contents(path):
    "A notebook's line in the table of contents: its number and title, or what it is."
    title = nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix('# ')
    number = path.stem.partition('_')[0]
    if path.parent.name == 'solutions': title = f'Solutions to lesson {number}'
    elif number.isdigit(): title = f'{number} · {title}'
    return f"{title} <{path.relative_to(nbs).with_suffix('').as_posix()}>"


def stage_all():
    "Lay out everything that Sphinx reads."
    shutil.rmtree(staged, ignore_errors=True)
    for p in nbs.rglob('images/*.*'): shutil.copy(p, made(staged/p.relative_to(nbs)))
    order, trees = in_order(), []
    for caption, folder in groups.items():
        pages = [p for p in order if p.parent == nbs/folder]
        for p in pages: stage(p)
        trees.append(toctree(caption, [contents(p) for p in pages]))
    trees.append(toctree('The package', [api_page(name) for name in modules()]))
    stage(nbs/'index.ipynb', trees)


def in_order():
    "All pages, those that the front page links to in its order."
    front = nbformat.read(nbs/'index.ipynb', 4)
    linked = [nbs/m for c in front.cells for m in re.findall(r'\]\(([\w/]+\.ipynb)\)', c.source)]
    here = [p for p in sorted(nbs.rglob('*.ipynb'))
            if not any(part[0] in '._' for part in p.relative_to(nbs).parts)]
    pages = [*dict.fromkeys(p for p in linked if p in here), *(p for p in here if p not in linked)]
    pages.remove(nbs/'index.ipynb')
    folders = {nbs/folder for folder in groups.values()}
    if lost := [p for p in pages if p.parent not in folders]: sys.exit(f'in no group: {lost}')
    return pages


class Page(HTMLParser):
    "What a page links to, the anchors it has, its pictures without alt text."
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.silent = [], set(), []
        self.feed(path.read_text('utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        self.links += [a[k] for k in ('href', 'src') if a.get(k)]
        if tag == 'img' and not (a.get('alt') or '').strip():
            self.silent.append(a.get('src', '')[:60])


def faults():
    "Links within the site that lead nowhere, and pictures without alt text."
    pages = {p: Page(p) for p in sorted(built.rglob('*.html')) if '_static' not in p.parts}
    for p, page in pages.items():
        name = p.relative_to(built)
        for src in page.silent: yield f'{name}: a picture without alt text, {src}'
        for to in set(page.links):
            path, _, anchor = unquote(to).partition('#')
            if re.match(r'\w+:|//', path): continue
            target = (p.parent/path.partition('?')[0]).resolve() if path else p
            if not target.exists(): yield f'{name}: {to} is not there'
            elif anchor and target in pages and anchor not in pages[target].ids:
                yield f'{name}: {to} has no such anchor'


def main(builder='html'):
    "Stage, build, check; the exit code."
    stage_all()
    out = built if builder == 'html' else root/'_site'/builder
    sphinx = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going']
    rc = subprocess.run([*sphinx, '-b', builder, '-c', here, staged, out]).returncode
    found = list(faults()) if builder == 'html' else []
    print(*found, sep='\n', end='\n' * bool(found))
    bad = rc or found
    what = 'not well, see above' if bad else 'every link, anchor and picture is well'
    print(f'{out.relative_to(root)}: {what}')
    return int(bool(rc or found))


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
