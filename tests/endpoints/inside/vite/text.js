export const text = "one";
