// The only place that creates elements. Text is set by textContent alone, so nothing from an
// event can become markup.

/** el("p", {class: "x", title: "y"}, "text", child…): null children are left out. */
export function el(tag, attributes = {}, ...children) {
	const node = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) attribute(node, name, value);
	for (const child of children) if (child !== null && child !== undefined) node.append(child);
	return node;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text, but leaves the page alone if it is there already. */
export function text(node, value) {
	if (node.textContent !== value) node.textContent = value;
}

/** Sets an attribute; null, undefined and false take it away. */
export function attribute(node, name, value) {
	if (value === null || value === undefined || value === false) {
		if (node.hasAttribute(name)) node.removeAttribute(name);
	} else if (node.getAttribute(name) !== String(value)) {
		node.setAttribute(name, value === true ? "" : String(value));
	}
}

export function hide(node, hidden) {
	if (node.hidden !== hidden) node.hidden = hidden;
}

/** Shows one of the icons of index.html. */
export function icon(node, name) {
	attribute(node.querySelector("use"), "href", `#icon-${name}`);
}

/** Makes the number of children right; `make` makes one that is missing. */
export function children(parent, wanted, make) {
	while (parent.children.length > wanted) parent.lastElementChild.remove();
	while (parent.children.length < wanted) parent.append(make(parent.children.length));
	return parent.children;
}
