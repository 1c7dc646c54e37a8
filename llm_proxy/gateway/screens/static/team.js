// Copying. Every page works without it: its buttons are hidden until they can be of use.
function say(text) {
  document.querySelector('.toast')?.remove();
  const box = document.createElement('div');
  box.className = 'toast';
  box.setAttribute('role', 'status');
  box.textContent = text;
  document.body.append(box);
  setTimeout(() => box.remove(), 1600);
}

// Pages that did not come over TLS have no clipboard: there the text is selected, for the keyboard to copy.
async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    say('Copied');
  } catch {
    getSelection().selectAllChildren(source);
    say(document.execCommand('copy') ? 'Copied' : 'Selected: copy it by the keyboard');
  }
}

for (const button of document.querySelectorAll('[data-copy]')) button.hidden = false;
document.addEventListener('click', (event) => {
  const button = event.target.closest('[data-copy]');
  if (button) copy(document.getElementById(button.dataset.copy));
});
