// A conversation: what was not sent at first is fetched where it is opened or scrolled to. Works as links without it.
import { $, $$, jump } from './app.js';

async function fragment(url) {
  const answer = await fetch(url, { headers: { Accept: 'text/html' } });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return document.createRange().createContextualFragment(await answer.text());
}

function failed(link, error) {
  link.removeAttribute('aria-busy');
  link.textContent = `Could not be loaded (${error.message}); try again`;
}

// The rest of a part, in the place of its beginning.
async function open(link) {
  if (link.getAttribute('aria-busy')) return;
  link.setAttribute('aria-busy', 'true');
  try {
    const whole = await fragment(link.href);
    const begun = link.previousElementSibling;
    if (begun && !link.hasAttribute('data-soon') && begun.matches('pre, .md, .in')) begun.remove();
    const box = document.createElement('div');
    box.className = 'opened';
    box.append(whole);
    link.replaceWith(box);
  } catch (error) {
    failed(link, error);
  }
}

document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-more]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link);
});
document.addEventListener('toggle', (event) => {
  const soon = event.target.open && $(':scope > [data-soon]', event.target);
  if (soon) open(soon);
}, true);

// Turns come before they are reached, and those above without moving what is read.
async function further(link) {
  if (link.getAttribute('aria-busy')) return;
  link.setAttribute('aria-busy', 'true');
  try {
    link.replaceWith(await fragment(link.dataset.turns));
    watch();
  } catch (error) {
    failed(link, error);
  }
}
// Heights above are estimates at first: keep the place until they have settled.
function hold(element, top, frames = 20) {
  scrollBy(0, element.getBoundingClientRect().top - top);
  if (frames) requestAnimationFrame(() => hold(element, top, frames - 1));
}
async function earlier(link) {
  if (link.getAttribute('aria-busy')) return;
  link.setAttribute('aria-busy', 'true');
  try {
    const found = await fragment(link.dataset.earlier);
    found.querySelector('[data-turns]')?.remove();
    const below = link.nextElementSibling;
    const from = Number(new URL(link.href).searchParams.get('from'));
    const top = below?.getBoundingClientRect().top;
    if (from > 1) {
      const before = Math.max(1, from - 40);
      const next = link.cloneNode();
      next.removeAttribute('aria-busy');
      next.href = link.href.replace(/from=\d+/, `from=${before}`);
      next.dataset.earlier = link.dataset.earlier.replace(/from=\d+/, `from=${before}`).replace(/n=\d+/, `n=${from - before}`);
      next.textContent = `earlier turns ${before}–${from - 1}`;
      link.before(next);
    }
    link.replaceWith(found);
    if (below) hold(below, top);
  } catch (error) {
    failed(link, error);
  }
}
const near = new IntersectionObserver((seen) => {
  for (const one of seen) {
    if (!one.isIntersecting) continue;
    near.unobserve(one.target);
    further(one.target);
  }
}, { rootMargin: '1500px 0px' });
const watch = () => $$('[data-turns]').forEach((link) => near.observe(link));
watch();
document.addEventListener('click', (event) => {
  const more = event.target.closest('[data-turns]');
  const up = event.target.closest('[data-earlier]');
  if (!more && !up) return;
  event.preventDefault();
  if (more) further(more);
  else earlier(up);
});

// A link to a turn that has come meanwhile stays on the page.
document.addEventListener('click', (event) => {
  const link = event.target.closest('.outline a, .over a');
  const hash = link && (link.getAttribute('href') ?? '').split('#')[1];
  const turn = hash && document.getElementById(hash);
  if (!turn || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, '', `#${hash}`);
  jump(turn);
});

// The outline says where one is.
let here = null;
const seen = new IntersectionObserver((entries) => {
  const first = entries.filter((one) => one.isIntersecting)[0];
  const row = first && $(`.outline a[href$="#${CSS.escape(first.target.id)}"]`);
  if (!row || row === here) return;
  here?.removeAttribute('aria-current');
  here = row;
  row.setAttribute('aria-current', 'true');
  const list = row.closest('.outline');
  const at = row.offsetTop;
  if (list.scrollHeight > list.clientHeight && (at < list.scrollTop || at > list.scrollTop + list.clientHeight - 40)) {
    list.scrollTop = at - list.clientHeight / 2;
  }
}, { rootMargin: '-60px 0px -70% 0px' });
const follow = () => $$('#turns .turn').forEach((turn) => seen.observe(turn));
follow();
new MutationObserver(follow).observe($('#turns') ?? document.body, { childList: true });

// From a search: to the words, in the turn that was asked for if it has them.
const found = $('.turn.found');
if (found && !location.hash) {
  const all = $$('#turns .turn');
  const at = all.indexOf(found);
  const around = [found, all[at - 1], all[at - 2], all[at - 3], all[at + 1]].filter(Boolean);
  const mark = around.map((one) => $('mark', one)).find(Boolean);
  mark?.closest('details:not([open])')?.setAttribute('open', '');
  jump(mark?.closest('.turn') ?? found);
}
