// A conversation that goes on: its open call grows at the end, and becomes a turn when it is recorded.
import { $, $$ } from './app.js';
import { element, facts, put, seconds, whileVisible, words } from './live-call.js';

const place = $('#live-turn');
const pieces = new Map();
let offset = 0;
let frame = 0;
let source = null;

// The page follows only where its end was on the screen.
function keeping(change) {
  const follows = place.getBoundingClientRect().bottom <= innerHeight + 40;
  change();
  if (follows) place.scrollIntoView({ block: 'end' });
}

function paint() {
  frame = 0;
  keeping(() => {
    for (const [id, data] of pieces) {
      const card = document.getElementById(`f-${id}`);
      if (!card) continue;
      facts(card, data);
      words($('[data-stream]', card), data.words);
    }
    pieces.clear();
  });
}

// An open call may have its turn already, which waits for its words; else it stands behind all turns.
const home = (id) => $(`[data-live-call="${CSS.escape(id)}"]`) ?? place;
function show(html) {
  const card = element(html);
  const known = document.getElementById(card.id);
  if (known) return;
  const there = home(card.id.slice(2));
  keeping(() => {
    if (there !== place) there.replaceChildren(card);
    else place.append(card);
  });
}

// What the page would show if it were loaded again: the turn that was open, and what is behind it.
async function grow(id) {
  const card = document.getElementById(`f-${id}`);
  const waiting = card?.closest('.turn');
  const last = $$('#turns .turn').at(-1);
  const number = (turn) => Number(turn?.id.match(/^t(\d+)/)?.[1] ?? 0);
  const from = waiting ? number(waiting) : number(last) + 1;
  try {
    const answer = await fetch(`${place.dataset.grow}?from=${from}&n=20`);
    if (!answer.ok) throw new Error(answer.statusText);
    const found = document.createElement('template');
    found.innerHTML = await answer.text(); // our own templates' output
    keeping(() => {
      card?.remove();
      for (const turn of found.content.querySelectorAll('.turn')) {
        const known = document.getElementById(turn.id);
        if (known && known === waiting) known.replaceWith(turn);
        else if (!known) place.before(turn);
      }
    });
  } catch {
    if (card) put($('[data-phase-words]', card), 'over; reload to see it as a turn');
  }
  await renew();
}

// What stands around the turns counts them: it is taken from the page as it is now, but for what has the focus.
const AROUND = ['.nav .cnt', '.phead', '.over', '.views', '.outline ol', '.ending'];
async function renew() {
  const answer = await fetch(location.href, { headers: { Accept: 'text/html' } }).catch(() => null);
  if (!answer?.ok) return;
  const now = new DOMParser().parseFromString(await answer.text(), 'text/html');
  document.title = now.title;
  keeping(() => {
    for (const part of AROUND) {
      const [old, fresh] = [$(part), $(part, now)];
      if (old && fresh && !old.contains(document.activeElement)) old.replaceWith(fresh);
    }
  });
}

const handlers = {
  hello(data) {
    offset = data.now_ms - Date.now();
    pieces.clear();
    $$('.lc').forEach((card) => card.remove());
    data.calls.reverse().forEach((one) => show(one.html));
    if (!data.on) source.close();
  },
  opened(data) { show(data.html); },
  placed(data) { show(data.html); },
  said(data) {
    const known = pieces.get(data.id);
    pieces.set(data.id, known ? { ...data, words: [...known.words, ...data.words] } : data);
    frame ||= requestAnimationFrame(paint);
  },
  over(data) {
    const card = document.getElementById(`f-${data.id}`);
    if (!card) return;
    card.dataset.over = '';
    put($('[data-phase-words]', card), 'over; being recorded');
  },
  recorded(data) { grow(data.id); },
};

function connect() {
  source?.close();
  source = new EventSource(place.dataset.events);
  for (const kind of Object.keys(handlers)) {
    source.addEventListener(kind, (event) => handlers[kind](JSON.parse(event.data)));
  }
}

if (place) {
  whileVisible(connect, () => source?.close());
  setInterval(() => {
    const now = Date.now() + offset;
    $$('.lc:not([data-over]) [data-clock]').forEach((one) => put(one, seconds(Math.max(0, now - one.dataset.clock))));
  }, 100);
}
