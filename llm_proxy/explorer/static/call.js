// One call: parts of a body when they are unfolded, more events, and texts that are copied when asked for.
const toast = (text) => document.dispatchEvent(new CustomEvent('toast', { detail: text }));
const fragment = async (path) => {
  const answer = await fetch(path, { credentials: 'same-origin' });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.text();
};
const here = location.pathname.replace(/\/$/, '');

document.addEventListener('toggle', async (event) => {
  const fold = event.target;
  if (!fold.open || !fold.dataset?.fetch) return;
  const { fetch: at, side } = fold.dataset;
  delete fold.dataset.fetch;
  try {
    const html = await fragment(`${here}/json?side=${side}&at=${at}`);
    const made = new DOMParser().parseFromString(html, 'text/html').body;
    fold.querySelector('ul').replaceWith(...made.children);
  } catch {
    fold.dataset.fetch = at;
    toast('This part could not be loaded');
  }
}, true);

document.addEventListener('click', async (event) => {
  const copied = event.target.closest('[data-copy-from]');
  if (copied && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    try {
      await navigator.clipboard.writeText(await fragment(here + copied.dataset.copyFrom));
      toast('Copied');
    } catch {
      toast('The browser does not allow copying here');
    }
    return;
  }
  const more = event.target.closest('[data-more]');
  if (more && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    try {
      const html = await fragment(`${here}/events${new URL(more.href).search}`);
      const made = new DOMParser().parseFromString(`<table><tbody>${html}</tbody></table>`, 'text/html');
      more.closest('tr').replaceWith(...made.querySelectorAll('tr'));
    } catch {
      toast('More events could not be loaded');
    }
  }
});
