// @ts-check
/** Where images come from: a file that is chosen, pasted or dropped. */

/**
 * Call ``open`` with each image that the user gives, wherever on the page.
 * @param {HTMLInputElement} input of files
 * @param {HTMLElement[]} buttons that ask for a file
 * @param {(file: File) => void} open
 */
export function listenForFiles(input, buttons, open) {
  const take = (/** @type {FileList | undefined} */ files) => {
    if (files?.length) open(files[0]);
  };
  for (const button of buttons) button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take(input.files ?? undefined);
    input.value = "";
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files));
  listenForDrops(take);
}

/** @param {(files: FileList | undefined) => void} take */
function listenForDrops(take) {
  const mark = (/** @type {boolean} */ isOver) => document.body.classList.toggle("is-dropping", isOver);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    take(event.dataTransfer?.files);
  });
}
