// Helpers for the document.
export const byId = (id) => document.getElementById(id);

export function element(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

// A write of the same text would still be laid out, and read aloud in a live region.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The names and values of a <dl>.
export function setFacts(list, facts) {
  if (list.children.length !== facts.length) {
    list.replaceChildren(...facts.map(() => element("div", "", element("dt"), element("dd"))));
  }
  facts.forEach(([name, value], n) => {
    const [term, description] = list.children[n].children;
    setText(term, name);
    setText(description, value);
  });
}

// Asks a question with two buttons; resolves to whether `action` was pressed.
export function confirm(question, action, otherwise) {
  const dialog = byId("question");
  setText(byId("question-text"), question);
  setText(byId("question-action"), action);
  setText(byId("question-otherwise"), otherwise);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "action"), { once: true });
  });
}

export const isAsking = () => byId("question").open;
