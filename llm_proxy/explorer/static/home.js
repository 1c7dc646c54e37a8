// Home: new sessions and calls come in while the list is at its top; else a pill says how many wait. Nothing scrolls.
const list = document.getElementById('list');
const pill = document.getElementById('pill');
const TOP = 60; // pixels: further down is reading
const QUIET = 700; // ms: what comes in a row is shown together

let source = null;
let begun = new Set();
let timer = 0;

async function refresh() {
  timer = 0;
  if (scrollY > TOP || list.contains(document.activeElement)) {
    if (begun.size) {
      pill.firstElementChild.textContent = `${begun.size} new call${begun.size === 1 ? '' : 's'}`;
      pill.hidden = false;
    }
    return;
  }
  const answer = await fetch(location.href, { headers: { Accept: 'text/html' } }).catch(() => null);
  if (!answer?.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
  const fresh = page.getElementById('list');
  // Meanwhile somebody may have begun to read or to move through it.
  if (!fresh || scrollY > TOP || list.contains(document.activeElement)) return;
  document.querySelector('.nav .cnt').replaceWith(page.querySelector('.nav .cnt'));
  const filters = document.querySelector('.facets');
  const open = filters?.open;
  list.replaceChildren(...fresh.childNodes);
  if (filters && !open) document.querySelector('.facets').open = false;
  begun = new Set();
  pill.hidden = true;
}

const soon = () => { timer ||= setTimeout(refresh, QUIET); };

function connect() {
  if (source || document.hidden) return;
  source = new EventSource(list.dataset.events);
  source.addEventListener('hello', () => { list.dataset.following = ''; });
  source.addEventListener('opened', (event) => begun.add(JSON.parse(event.data).id));
  for (const kind of ['placed', 'recorded']) source.addEventListener(kind, soon);
}

if (list?.dataset.events) {
  pill.firstElementChild.addEventListener('click', () => {
    scrollTo(0, 0);
    document.activeElement.blur();
    refresh();
  });
  // A browser keeps few connections to one host: tabs that nobody sees leave them to the others.
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else {
      connect();
      soon();
    }
  });
  connect();
}
