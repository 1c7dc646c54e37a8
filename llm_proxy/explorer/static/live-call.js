// A call in flight on a page: its card's figures and its words, which come as text nodes.
import { $ } from './app.js';

const LONGEST = 6000; // characters of a call's words that stay on the page

export const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : ms < 10_000 ? `${(ms / 1000).toFixed(2)} s`
  : ms < 60_000 ? `${(ms / 1000).toFixed(1)} s`
    : `${Math.floor(ms / 60_000)}m ${String(Math.floor(ms / 1000) % 60).padStart(2, '0')}s`);
const tokens = (n) => (n < 1000 ? `${n}` : n < 9950 ? `${(n / 1000).toFixed(1)}k` : `${Math.round(n / 1000)}k`);
const size = (n) => (n < 1000 ? `${n} B` : n < 99_500 ? `${(n / 1000).toFixed(1)} kB` : n < 1e6 ? `${Math.round(n / 1000)} kB`
  : `${(n / 1e6).toFixed(1)} MB`);
const money = (usd) => (usd === 0 ? '$0' : usd < 0.01 ? '<$0.01' : `$${usd.toFixed(usd >= 100 ? 0 : 2)}`);
export const put = (node, text) => { if (node && node.textContent !== text) node.textContent = text; };
export const element = (html) => {
  const made = document.createElement('template');
  made.innerHTML = html; // our own template's output, escaped there
  return made.content.firstElementChild;
};

// Browsers have six connections for all pages of an address: a page that is hidden gives its own back.
export function whileVisible(begin, end) {
  document.addEventListener('visibilitychange', () => (document.hidden ? end() : begin()));
  addEventListener('pagehide', end);
  addEventListener('pageshow', (event) => { if (event.persisted) begin(); });
  if (!document.hidden) begin();
}

const phases = { sending: 'sending the request', waiting: 'waiting for the first byte', tool: 'tool' };
export function facts(card, data) {
  const quiet = data.phase === 'sending' || data.phase === 'waiting';
  card.dataset.phase = data.phase;
  put($('[data-phase-words]', card), (data.phase === 'tool' && data.tool) || phases[data.phase] || data.phase);
  put($('[data-first]', card), data.first_ms === null ? '' : `first token ${seconds(data.first_ms)}`);
  put($('[data-size]', card), quiet ? `request ${size(data.request_bytes)}`
    : data.phase === 'receiving' ? size(data.response_bytes)
      : data.output_tokens ? `${data.counted ? '' : '≈'}${tokens(data.output_tokens)} tok` : '');
  put($('[data-speed]', card), data.tokens_per_second ? `${Math.round(data.tokens_per_second)} tok/s` : '');
  put($('[data-cost]', card), data.usd === null ? '' : (data.subscription ? '≈' : data.usd < 0.01 ? '' : '~') + money(data.usd));
}

export function words(stream, said) {
  if (!said.length) return;
  if ($('[data-none]', stream)) {
    stream.replaceChildren();
    stream.parentElement.classList.remove('mono', 'muted');
  }
  for (const [kind, text, name] of said) {
    let block = stream.lastElementChild;
    if (!block || name || block.className !== `w-${kind}`) {
      block = document.createElement('span');
      block.className = `w-${kind}`;
      if (name) {
        const head = document.createElement('b');
        head.textContent = name;
        block.append(head, ' ');
      }
      stream.append(block);
    }
    if (text) block.append(text); // a text node, whatever it says
  }
  let length = stream.textContent.length;
  while (length > LONGEST && stream.firstChild) {
    const first = stream.firstElementChild;
    const node = first.firstChild;
    length -= node?.textContent.length ?? 0;
    if (node && (first.childNodes.length > 1 || first !== stream.lastElementChild)) node.remove();
    else if (node) { node.textContent = node.textContent.slice(-LONGEST / 2); break; }
    if (!first.firstChild) first.remove();
  }
}
