// What every page has: keys, copying, folding, jumps that settle. Every page works without it.
export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const root = document.body.dataset.root;

export function toast(text) {
  $('.toast')?.remove();
  const box = document.createElement('div');
  box.className = 'toast';
  box.setAttribute('role', 'status');
  box.textContent = text;
  document.body.append(box);
  setTimeout(() => box.remove(), 1600);
}

// For other modules: importing this one by another address would run it twice.
document.addEventListener('toast', (event) => toast(event.detail));

async function copy(text, said = 'Copied') {
  try {
    await navigator.clipboard.writeText(text);
    toast(said);
  } catch {
    toast('The browser does not allow copying here');
  }
}

// Turns off screen have estimated heights: keep aiming until the place stays put.
export function jump(target) {
  let frames = 0;
  let last = NaN;
  const aim = () => {
    target.scrollIntoView({ block: 'start' });
    const at = target.getBoundingClientRect().top + scrollY;
    if (frames++ < 40 && (frames < 6 || at !== last)) {
      last = at;
      requestAnimationFrame(aim);
    }
  };
  aim();
}

let keys = localStorage.getItem('keys') !== 'off';
document.addEventListener('click', (event) => {
  const opener = event.target.closest('[data-open]');
  if (opener) return document.getElementById(opener.dataset.open).showModal();
  const copied = event.target.closest('[data-copy]');
  if (copied) {
    event.preventDefault();
    return copy(copied.dataset.copy);
  }
  if (event.target.closest('[data-keysoff]')) {
    keys = !keys;
    localStorage.setItem('keys', keys ? 'on' : 'off');
    toast(keys ? 'Keys on' : 'Keys off');
  }
});

// Real focus moves; there is no second, painted cursor.
const items = () => {
  const rows = $$('.row .ttl');
  return rows.length ? rows : $$('[data-item]');
};
function step(by) {
  const list = items();
  if (!list.length) return;
  const here = list.findIndex((one) => one === document.activeElement || one.contains(document.activeElement));
  const next = list[Math.max(0, Math.min(list.length - 1, here < 0 ? (by > 0 ? 0 : list.length - 1) : here + by))];
  if (!next.matches('a')) next.tabIndex = -1;
  next.focus({ preventScroll: true });
  const turn = next.closest('.turn');
  if (turn) jump(turn);
  else next.scrollIntoView({ block: 'nearest' });
}
let place = -1;
function trouble(by) {
  const list = $$('[data-trouble]');
  if (!list.length) return toast('No trouble here');
  const next = place < 0 ? (by > 0 ? 0 : -1) : place + by;
  if (!list[next]) return toast('No more trouble');
  place = next;
  jump(list[next]);
}
const turnHere = () => document.activeElement.closest('.turn') ?? $('.turn:target');
const pages = { h: '/', s: '/search', f: '/figures', l: '/live' };
const actions = {
  j: () => step(1),
  k: () => step(-1),
  '/': () => ($('#bq') ?? $('#q')).select(),
  '?': () => $('#keys').showModal(),
  n: () => trouble(1),
  p: () => trouble(-1),
  t: () => {
    const folds = $$('details.th');
    const open = !folds[0]?.open;
    folds.forEach((fold) => { fold.open = open; });
  },
  e: () => {
    const folds = $$('details', turnHere() ?? undefined);
    const open = !folds.every((fold) => fold.open);
    if (turnHere()) folds.forEach((fold) => { fold.open = open; });
  },
  y: () => copy(location.href.split('#')[0] + (turnHere()?.id ? `#${turnHere().id}` : ''), 'Link copied'),
  u: () => $$('.crumb a').at(-1)?.click(),
  d: () => $('a[data-diff]', turnHere() ?? document)?.click(),
  '[': () => $('[rel=prev]')?.click(),
  ']': () => $('[rel=next]')?.click(),
  ' ': () => $('#pause')?.click(),
};
let went = 0;
addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && event.target.matches?.('input')) return event.target.blur();
  const busy = event.target.closest?.('input, select, textarea, [contenteditable]') || $('dialog[open]');
  if (!keys || busy || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === ' ' && (!$('#pause') || event.target.closest?.('button, a, summary'))) return;
  if (went && Date.now() - went < 1200) {
    went = 0;
    if (pages[event.key]) return location.assign(root + pages[event.key]);
  }
  if (event.key === 'g') went = Date.now();
  const action = actions[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

// Filters and outline are folded where they stand above the content.
if (matchMedia('(max-width:900px)').matches) $$('.facets').forEach((fold) => { fold.open = false; });
if (matchMedia('(max-width:1180px)').matches) $$('.outline').forEach((fold) => { fold.open = false; });

const land = () => {
  const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  if (target?.matches('.turn')) jump(target);
};
addEventListener('hashchange', land);
land();
