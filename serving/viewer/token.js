// The token of this tab: never in the URL, gone when the tab is closed.

const KEY = "dropgen-token";

export const storedToken = () => sessionStorage.getItem(KEY);

export const storeToken = (token) => sessionStorage.setItem(KEY, token.trim());

export const forgetToken = () => sessionStorage.removeItem(KEY);
