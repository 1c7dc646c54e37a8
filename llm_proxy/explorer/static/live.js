// Calls in flight as they go on. The page is whole without it; this follows /live/events and says so in the state bar.
import { $, $$ } from './app.js';
import { element, facts, put, seconds, whileVisible, words } from './live-call.js';


const bar = $('#follow');
const flights = $('#flights');
const finished = $('#fin');
const pill = $('#pill');
const pause = $('#pause');
const MOST_FINISHED = 50;
const MOST_WAITING = 4000; // events kept while paused; beyond that, going on begins anew
const TOP = 60; // pixels: further down is reading, and new rows wait

let source = null;
let offset = 0; // server's clock minus ours, in ms
let last = Date.now();
let held = null; // '', 'space' or 'scroll': why the page stands still; null: it follows
let lost = false;
let waiting = [];
const begun = new Set(); // ids of calls begun since it stands still
let overflow = false;
const pieces = new Map(); // id -> words to be painted with the next frame
let frame = 0;

// --- the state bar, the only thing that is announced

function say() {
  const started = begun.size;
  const calls = `${started} call${started === 1 ? ' has' : 's have'} started since; nothing is lost`;
  const [word, what] = lost
    ? ['Reconnecting', `last event ${seconds(Date.now() - last)} ago`]
    : held === 'scroll' ? ['Paused', `you scrolled down; ${calls}`]
      : held === 'space' ? ['Paused', calls]
        : ['Following', 'new calls appear as they start; scrolling down pauses'];
  bar.classList.toggle('off', lost || held !== null);
  put($('b', bar), word);
  put($('[data-what]', bar), what);
  if (pause.getAttribute('aria-pressed') !== `${held !== null}`) {
    pause.setAttribute('aria-pressed', `${held !== null}`);
    pause.firstChild.textContent = held === null ? 'Pause ' : 'Go on ';
  }
  pill.parentElement.hidden = held === null || !started;
  put(pill, `${started} new call${started === 1 ? '' : 's'}`);
}

function hold(why) {
  if (held === why) return;
  if (why !== null) {
    held = why;
  } else {
    held = null;
    begun.clear();
    const late = waiting;
    waiting = [];
    if (overflow) connect();
    else late.forEach(([kind, data]) => take(kind, data));
    overflow = false;
  }
  say();
}

// --- what comes

function take(kind, data) {
  if (held !== null) {
    keep(kind, data);
    return;
  }
  handlers[kind]?.(data);
  if (kind !== 'said') count();
}

// A hello may come late, or again: it tells all that is true by then, so nothing from before it need wait any longer.
function keep(kind, data) {
  if (kind === 'hello') {
    waiting = [];
    overflow = false;
    data.calls.filter((one) => !document.getElementById(`f-${one.id}`)).forEach((one) => begun.add(one.id));
  } else if (kind === 'opened') {
    begun.add(data.id);
  }
  if (waiting.length < MOST_WAITING) waiting.push([kind, data]);
  else overflow = true;
  if (kind === 'hello' || kind === 'opened') say();
}

const handlers = {
  hello(data) {
    offset = data.now_ms - Date.now();
    pieces.clear();
    flights.replaceChildren(...data.calls.map((one) => element(one.html)));
    if (data.finished.length) finished.replaceChildren(...data.finished.map((one) => element(one.html)));
  },
  opened(data) {
    if (!document.getElementById(`f-${data.id}`)) flights.prepend(element(data.html));
  },
  placed(data) {
    const card = document.getElementById(`f-${data.id}`);
    if (card) $('.h', card).replaceWith($('.h', element(data.html)));
  },
  said(data) {
    const known = pieces.get(data.id);
    pieces.set(data.id, known ? { ...data, words: [...known.words, ...data.words] } : data);
    frame ||= requestAnimationFrame(paint);
  },
  over(data) {
    paint();
    document.getElementById(`f-${data.id}`)?.remove();
    row(data);
  },
  recorded(data) { row(data); },
};

function row(data) {
  const fresh = element(data.html);
  const known = document.getElementById(`d-${data.id}`);
  if (known) return known.replaceWith(fresh);
  if ($('.fin.muted', finished)) finished.replaceChildren();
  fresh.classList.add('new');
  finished.prepend(fresh);
  while (finished.children.length > MOST_FINISHED) finished.lastElementChild.remove();
}

// --- at most once a frame

function paint() {
  cancelAnimationFrame(frame);
  frame = 0;
  for (const [id, data] of pieces) {
    const card = document.getElementById(`f-${id}`);
    if (card) {
      facts(card, data);
      words($('[data-stream]', card), data.words);
    }
  }
  pieces.clear();
}

function count() {
  const open = flights.children.length;
  put($('[data-inflight]'), `${open}`);
  put($('.nav .cnt'), `${open}`);
  $('.nav .cnt').hidden = open === 0;
  $('#none').hidden = open > 0;
}

function tick() {
  if (held !== null && !lost) return;
  const now = Date.now() + offset;
  if (held === null) $$('[data-clock]', flights).forEach((one) => put(one, seconds(Math.max(0, now - one.dataset.clock))));
  if (lost) say();
  const recent = $$('[data-ended]', finished).filter((one) => now - one.dataset.ended < 60_000).length + flights.children.length;
  put($('[data-minute]'), `${recent}${recent >= MOST_FINISHED ? '+' : ''} call${recent === 1 ? '' : 's'} in the last minute`);
}

// --- the connection

function connect() {
  source?.close();
  source = new EventSource(bar.dataset.events);
  for (const kind of Object.keys(handlers)) {
    source.addEventListener(kind, (event) => {
      last = Date.now();
      take(kind, JSON.parse(event.data));
    });
  }
  source.onopen = () => {
    last = Date.now();
    lost = false;
    say();
  };
  source.onerror = () => {
    lost = true;
    if (source.readyState === EventSource.CLOSED) {
      // The browser gives up where it was refused: the daemon may be starting, or the session is over.
      setTimeout(() => { if (!document.hidden && source.readyState === EventSource.CLOSED) connect(); }, 3000);
    }
    say();
  };
}

if (bar.dataset.events) {
  $('#reload').hidden = true;
  pause.hidden = false;
  pause.addEventListener('click', () => hold(held === null ? 'space' : null));
  pill.addEventListener('click', () => {
    hold(null);
    scrollTo({ top: 0 });
    $('h1').parentElement.scrollIntoView({ block: 'nearest' });
  });
  addEventListener('scroll', () => {
    if (scrollY > TOP && held === null) hold('scroll');
    else if (scrollY <= TOP && held === 'scroll') hold(null);
  }, { passive: true });
  whileVisible(() => {
    if (held === null) connect();
  }, () => {
    source?.close();
    overflow = held !== null; // going on begins anew
  });
  setInterval(tick, 100);
  tick();
}
